"""How the depth of a token looks, the same in reports and on the server's page: colours and a style sheet."""

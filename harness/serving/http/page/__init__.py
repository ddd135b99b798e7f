"""The web page: try a prompt, see the depth of every token, copy settings for an editor. No framework."""

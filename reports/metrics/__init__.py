"""The metrics of an operating point, a module per theme; each is declared here once and read everywhere."""

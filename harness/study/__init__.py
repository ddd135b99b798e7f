"""Studies: a declared grid of runs, executed somewhere, every one an ordinary run directory, none of them lost."""

"""Stop rules: what ends a completion before its protocol or the limit of tokens does, one file each."""

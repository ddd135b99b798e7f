"""One module per subcommand of ``harness``; nothing heavy is imported before a command runs."""

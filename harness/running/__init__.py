"""From a configuration to a measured run: plan → session → runner, scoring, and reading it back."""

"""What this machine is and reaches: processor, environment, model hub, interpreters of its own."""

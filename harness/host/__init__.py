"""The machine: its processor, environment, access to the model hub, files and helper processes."""

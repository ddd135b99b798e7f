"""What a model's exits said, kept on disk: making traces, reading them, replaying rules on them."""

"""Traces of a model's exits on disk: making traces, reading them, replaying rules on them."""

"""Which models there are, their facts, and how weights and tokenizers are loaded: :mod:`harness.models.model`."""

"""Which models there are, their facts, and how their weights and tokenizers are had: :mod:`harness.models.model`."""

"""One file per weights format: how matrices are stored and multiplied. A new one is one file.

It subclasses :class:`harness.contracts.WeightsFormat` and registers itself in ``harness.weights_formats``. What a
format makes of a matrix is used like :class:`harness.decoding.blocks.Linear`, which holds one as a plain tensor.
"""

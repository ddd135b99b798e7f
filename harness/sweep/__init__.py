"""Many operating points scored from one trace, in seconds: depth × threshold sweeps, labelled ``replayed``."""

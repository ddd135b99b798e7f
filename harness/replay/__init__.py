"""Strategies replayed on traces: sweeps over settings, what a model is suited for, and promises about live settings."""

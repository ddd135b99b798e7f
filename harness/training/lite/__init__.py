"""LITE: tuning a model with the losses of all its exits."""

"""Intervals, tests and calibration, each with its definition. Knows no run."""

"""Examines what this machine can measure, how far to trust its numbers, and whether error bars are right."""

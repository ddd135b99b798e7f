"""Figures of runs, sweeps and training, described first, and drawn with matplotlib when they are saved."""

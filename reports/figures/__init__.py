"""Figures of runs, sweeps and training: drawn with matplotlib, saved as SVG, PDF and PNG.

A figure is described first (:class:`reports.figures.figure.Figure`) and drawn when it is saved; matplotlib is loaded
then and not before.
"""

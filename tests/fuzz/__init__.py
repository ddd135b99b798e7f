"""Hostile input at the four doors, and a loop of kills: tests that find faults nobody has thought of.

The doors are configuration and options, run directories, rows, and folders of models and artefacts. Whatever comes
through one ends in a documented exit code, a refusal in one line, clean text, and bounded time and memory; a record
that was damaged is never taken for whole. ``make test`` tries a few hundred cases, the same ones every time; with
``MARKERS=`` it tries thousands; ``make fuzz`` draws new ones for an hour.
"""

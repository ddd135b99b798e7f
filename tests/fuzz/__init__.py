"""Hostile input at the four doors, and a loop of kills: tests that find faults nobody has thought of.

The doors are configuration and options, run directories, rows, and folders of models and artefacts. Whatever comes
through one ends in a documented exit code, a refusal in one line, clean text, and bounded time and memory; a record
that was damaged is never taken for whole. The gate tries a few cases of each, the same every time; ``make
fuzz`` draws new ones for an hour.
"""

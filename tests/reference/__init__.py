"""What must not change while the house is rebuilt: recorded once, run again and compared after each step.

    python -m tests.reference.record compare tests/reference/recorded --only points --match 'llama|stops'

prints a line for each difference and ends with 1 if there is one; texts (tables, help) are only told to differ, and
shown with ``--texts``. Recorded with commit 02aa74b0 on one machine: floating point of another may decide otherwise.

- ``points``: tokens, exit layers and counters of tiny models of six families; ``real``: of the default model
- ``help``: commands, their options, registered names; ``refusals``: exit codes and first lines of wrong calls
- ``summaries``: what ``report`` and ``compare`` make of stored runs; ``replay``: of stored traces, and a calibration
- ``server``: answers of each dialect; ``study``: what one that is killed twice has measured

``python -m tests.reference.house FOLDER …`` counts the house. Scaffolding: nothing here is collected by pytest, and all
of it goes when the rebuilding is over.
"""

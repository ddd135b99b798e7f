"""From a run's raw records to tables, figures, pages and files.

``statistics`` knows no run; ``summary`` computes what ``summary.json`` holds; ``tables``, ``figures`` and
``completions`` show it; ``collection`` writes a report of many runs, ``leaderboard`` a site of them; ``comparing`` sets
two runs side by side, ``published`` a run and the numbers of a paper; ``training_logs`` reads what trainings logged.
This package itself loads nothing. Nothing here imports torch, a strategy or a task: what a report needs of a
task comes as a callback.
"""

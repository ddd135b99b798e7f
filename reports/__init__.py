"""From a run's raw records to tables, a Pareto front and files.

``summarise`` makes the summary, ``render`` shows it in a terminal, ``write_report`` saves it. Import them from
:mod:`reports.summarise`, :mod:`reports.terminal` and :mod:`reports.export`; this package itself loads nothing.
Nothing here imports torch, a strategy or a task: what a report needs of a task comes as a callback.
"""

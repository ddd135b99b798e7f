"""A paper's experiment as runs of this harness: which runs, what they need, and their execution one after the other.

The one place besides the command line that names models, tasks and agents: it stands above orchestration.
"""

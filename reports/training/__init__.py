"""The trainings behind runs: which folders hold them, and what their logs say."""

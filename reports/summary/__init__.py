"""The numbers and notes of ``summary.json``, computed from raw records."""

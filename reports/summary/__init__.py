"""What ``summary.json`` holds, computed from raw records: one module per question."""

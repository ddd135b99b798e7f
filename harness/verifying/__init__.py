"""Do tokens that must be the same come out the same? Claims, every difference with its gap, and a verdict."""

"""GREEN-CODE's grid: the paper's numbers and ours point by point, as data, as text and as files."""

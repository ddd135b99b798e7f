"""Numbers that others published, as facts with their source; shown beside ours and never mixed with them."""

"""Training of everything an exit strategy can learn: exit-capable weights, exit heads, and controllers."""

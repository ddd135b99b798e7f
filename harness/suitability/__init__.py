"""Says in minutes whether early exit can pay for a model on this machine, and which family of strategies."""

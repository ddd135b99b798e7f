"""Statistics that cheap heads are made from: counts of tokens, and the directions of states that move logits."""

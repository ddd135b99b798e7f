"""Linear maps from each exit to the last layer, fitted in closed form."""

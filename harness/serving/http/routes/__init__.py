"""One module per dialect: translates requests to jobs, and their results to answers."""

"""One module per dialect: what it sends becomes a job, what comes back becomes its answer."""

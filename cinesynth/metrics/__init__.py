"""Video metrics, their weights, statistics and records. Knows nothing of Ray."""

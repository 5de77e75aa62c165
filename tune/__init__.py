"""The search for an adapter's rank, alpha and learning rate, with Ray Tune and Optuna."""

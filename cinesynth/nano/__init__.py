"""How the nano base model is made: its home domain, its VAE, its encoders, its transformer, its figures."""

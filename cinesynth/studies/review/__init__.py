"""The expert review: people compare or rate videos, without knowing which arm made which."""

"""The training loop, its strategies and its Ray Train driver."""

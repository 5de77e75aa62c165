"""Wan2.1 image-to-video models: load, condition, flow objective, adapters, the nano model."""

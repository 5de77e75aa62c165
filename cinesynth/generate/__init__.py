"""Denoising and decoding: first frame, prompt and adapters to a video."""

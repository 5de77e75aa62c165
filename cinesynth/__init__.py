"""cinesynth: from a folder of footage to a served, cinematic image-to-video model, on Ray."""

__version__ = "0.1.0"

"""Windows to tensors: annotation, VAE, CLIP and text stages, commits, assembly."""

"""Starting clusters: a local head for the demo and for development."""

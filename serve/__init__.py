"""HTTP serving on Ray Serve: ingress, job store, engines."""

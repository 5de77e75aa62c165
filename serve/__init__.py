"""HTTP serving on Ray Serve: ingress, dispatcher, engines."""

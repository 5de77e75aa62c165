"""HTML pages and plots from result files."""

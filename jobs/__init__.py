"""The jobs' command lines: `python -m jobs.NAME ...` runs one, and `python -m jobs.submit NAME ...` submits it to a cluster."""

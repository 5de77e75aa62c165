"""The jobs: `python -m jobs.NAME ...` runs one here, and `python -m jobs.submit NAME ...` submits it to a cluster."""

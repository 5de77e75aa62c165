"""Entry points: `ray job submit --working-dir . -- python -m jobs.NAME --config FILE [key=value ...]`."""

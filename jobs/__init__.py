"""The jobs' command lines: `ray job submit --working-dir . -- python -m jobs.NAME --config FILE [key=value ...]`."""

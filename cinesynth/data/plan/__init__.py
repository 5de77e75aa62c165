"""Which windows a dataset holds: windows, sizes and crops, near-duplicates, groups and splits."""

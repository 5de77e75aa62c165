"""One pass over each file: decoders, the watched child, timestamps, cuts and scores."""

"""The footage: sources, lists, formats, content hashes, captions, and a cache on each node for files of a bucket."""

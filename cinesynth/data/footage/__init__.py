"""What the footage is: sources, lists, content hashes, captions, and a cache on each node for files of a bucket."""

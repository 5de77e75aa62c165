"""Footage to training shards."""

"""Slow, plain-Python versions of what the core computes in batches, written from the method."""

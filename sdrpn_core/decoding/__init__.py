"""Greedy decoding on key-value caches: steps, graphs of steps, and the caches themselves."""

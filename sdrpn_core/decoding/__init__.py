"""The decoder of a model, run layer by layer: inputs, key-value caches, steps and their graphs."""

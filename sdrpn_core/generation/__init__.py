"""Answers: prompts in batches, and what the model greedily says to them."""

"""Numerics, models, training, inference, benchmarks and reports; no orchestration, no storage."""

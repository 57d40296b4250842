"""Wiring and concurrency: Prefect flows and the command line."""

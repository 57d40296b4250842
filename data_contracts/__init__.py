"""Versioned schemas, enums, settings and artifact references."""

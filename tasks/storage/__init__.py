"""Bytes in and out of any URI, whatever its driver."""

"""Errors that a user can act on: one line, the culprit and the remedy."""


class SdrpnError(Exception):
    """Base of errors shown to users as one line, without a traceback."""

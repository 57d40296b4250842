"""Errors that a user can act on: one line, the culprit and the remedy."""


class SdrpnError(Exception):
    """Base of errors shown to users as one line, without a traceback."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; of what kind it is if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def root_cause(error: BaseException) -> str:
    """What is at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)

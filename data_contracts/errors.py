"""Errors that a user can act on: one line, the culprit and the remedy."""

from data_contracts.addresses import concealed


class SdrpnError(Exception):
    """Base of errors shown to users as one line, without a traceback.

    They name addresses, and end in terminals, logs, rows and Prefect's pages.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(concealed(arg) if isinstance(arg, str) else arg for arg in args))


_MAX_SAID = 2000
"""Characters; errors of drivers may repeat all that a server sent."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; of what kind it is if it says nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    return concealed(said if len(said) <= _MAX_SAID else f"{said[:_MAX_SAID]}...")


def root_cause(error: BaseException) -> str:
    """What is at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def broken_package(error: BaseException) -> SdrpnError:
    """What to say where an installed package cannot be imported.

    Args:
        error: as its import raised it. Nearly always it is torchvision's, which transformers loads
            wherever it is.
    """
    cause = root_cause(error)
    remedy = "install it anew, or remove it if 'pip show sdrpn' does not name it"
    if "torchvision" in cause:
        remedy = (
            "torchvision and torch do not fit: install both anew from one index "
            "(pip install --upgrade torch torchvision), or remove torchvision, which is not "
            "needed here (pip uninstall torchvision)"
        )
    return SdrpnError(f"an installed package cannot be loaded: {cause}; {remedy}")

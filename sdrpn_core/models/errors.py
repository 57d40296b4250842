"""What goes wrong with a model, from its files to its profile."""

from data_contracts.errors import SdrpnError


class ModelError(SdrpnError):
    """A model cannot be loaded or does not fit its profile."""

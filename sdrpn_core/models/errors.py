"""What goes wrong with a model, from its files to its profile."""

from data_contracts.errors import SdrpnError
from data_contracts.settings_files import ConfigError


class ModelError(SdrpnError):
    """A model cannot be loaded or does not fit its profile."""


class UnknownChoice(ModelError, ConfigError):
    """A setting names what no machine has, so that it has to be changed first."""


class UnfitSetting(ModelError, ConfigError):
    """A setting asks for what models of a family cannot do, so that it has to be changed first."""

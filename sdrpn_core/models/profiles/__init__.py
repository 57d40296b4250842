"""Packaged model profiles and the one way to load any profile."""

from importlib import resources
from pathlib import Path

from data_contracts.profiles import ModelProfile
from data_contracts.settings_files import ConfigError, load_settings


def load_profile(name_or_path: str) -> ModelProfile:
    """Read a packaged profile by name, or any profile from a YAML or JSON file.

    Raises:
        ConfigError: if there is no such profile or it does not validate.
    """
    packaged = resources.files(__name__)
    entry = packaged / f"{name_or_path}.yaml"
    if entry.is_file():
        with resources.as_file(entry) as path:
            return load_settings(ModelProfile, path)
    if Path(name_or_path).is_file():
        return load_settings(ModelProfile, name_or_path)
    if Path(name_or_path).is_dir():
        raise ConfigError(
            f"model.profile: {name_or_path} is a folder; give the profile's file. If it is a "
            f"model's, `sdrpn calibrate --model {name_or_path} --out FOLDER` writes one, "
            "FOLDER/profile.yaml"
        )
    raise ConfigError(
        f"model.profile: no profile {name_or_path!r}; packaged are "
        f"{', '.join(packaged_profiles())}, or give the path of a profile file"
    )


def packaged_profiles() -> list[str]:
    """Names of the profiles that come with the package, sorted."""
    files = (item.name for item in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def named_model(name_or_id: str) -> str:
    """Hub id or directory of a model that is given by the name of its packaged profile, or itself.

    A folder of that name in the working directory is meant first.
    """
    is_name = name_or_id in packaged_profiles() and not Path(name_or_id).is_dir()
    return load_profile(name_or_id).model_id if is_name else name_or_id

"""Finding run configurations: packaged ones by name, any by path."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from data_contracts.configs import PipelineConfig
from data_contracts.settings_files import ConfigError

DEFAULT = "reference"


def load_config(
    name_or_path: str = DEFAULT, replaced: Mapping[str, object] | None = None
) -> PipelineConfig:
    """Read a run configuration.

    Args:
        name_or_path: ``reference`` and the like, or a YAML file.
        replaced: sections that count instead of the file's, which need not be there.

    Raises:
        ConfigError: if there is none or it is not valid; names the key and the remedy.
    """
    if Path(name_or_path).is_file() or name_or_path.endswith((".yaml", ".yml", ".json")):
        return PipelineConfig.load(name_or_path, replaced)
    packaged = resources.files("configs")
    entry = packaged / f"{name_or_path}.yaml"
    if not entry.is_file():
        names = sorted(item.name.removesuffix(".yaml") for item in packaged.iterdir())
        known = ", ".join(name for name in names if not name.startswith("_"))
        raise ConfigError(
            f"no configuration {name_or_path!r}: packaged are {known}; or give a YAML file"
        )
    with resources.as_file(entry) as path:
        return PipelineConfig.load(path, replaced)

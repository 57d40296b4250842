"""How large a model's text part and grid are: read from its configuration, without its weights."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from data_contracts.profiles import DynamicGrid, ModelProfile, SquareGrid
from sdrpn_core.models.families import FAMILIES, check_family
from sdrpn_core.models.loading import known_config
from sdrpn_core.models.square import square_canvas


@dataclass(frozen=True)
class ModelDimensions:
    """What sizes follow from."""

    text: PreTrainedConfig
    """Configuration of the text model."""
    num_cells: int
    """Of the grid that labels are made on; the most that a dynamic one may have."""
    are_read: bool
    """From the model's configuration; else guessed, as usual in its family."""


def model_dimensions(profile: ModelProfile) -> ModelDimensions:
    """Those of a model whose configuration is on this machine, else those usual in its family.

    Raises:
        ModelError: if the family is not known, the configuration cannot be read, or the model is
            one that the family does not drive.
    """
    check_family(profile)
    config = known_config(profile)
    if config is None:
        return ModelDimensions(_usual(profile), _num_cells(profile, None), are_read=False)
    text = config.get_text_config(decoder=True)
    return ModelDimensions(text, _num_cells(profile, config), are_read=True)


def _usual(profile: ModelProfile) -> PreTrainedConfig:
    """A model of this many layers and heads, as wide as the family's are."""
    family = FAMILIES[profile.family]
    return family.usual_text_config(
        profile.num_layers,
        profile.num_heads,
        profile.num_heads * family.defaults.width_per_head,
    )


def _num_cells(profile: ModelProfile, config: PreTrainedConfig | None) -> int:
    match profile.images.labels:
        case SquareGrid(side=side):
            return side * side
        case DynamicGrid(max_cells=num_cells):
            return num_cells
        case None if config is not None:
            return square_canvas(config)[1].num_cells
    return FAMILIES[profile.family].defaults.num_cells

"""How large a model's decoder and grid are: read from its configuration, without its weights."""

from dataclasses import dataclass

from transformers import AutoConfig, PreTrainedConfig

from data_contracts.profiles import DynamicGrid, ModelProfile, SquareGrid
from sdrpn_core.models.hub import explained, local_folder, quiet_transformers
from sdrpn_core.models.loading import model_source
from sdrpn_core.models.square import square_canvas

_HEAD_SIZE = 128
_NUM_CELLS = 576
"""Of the grid that the paper's models see."""


@dataclass(frozen=True)
class ModelDimensions:
    """What sizes follow from."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_heads: int
    head_size: int
    num_cells: int
    """Of the grid that labels are made on; the most that a dynamic one may have."""

    def num_rpn_parameters(self, depth: int) -> int:
        """Parameters of a region proposal network, small ones (norms, biases) left out.

        Args:
            depth: decoder layers copied; the last gives only its query and key projections.
        """
        query = self.hidden_size * self.num_heads * self.head_size
        key = self.hidden_size * self.num_key_heads * self.head_size
        whole = 2 * query + 2 * key + 3 * self.hidden_size * self.intermediate_size
        return (depth - 1) * whole + query + key


def model_dimensions(profile: ModelProfile) -> ModelDimensions:
    """Those of a model whose configuration is on this machine, else those usual for its heads.

    Raises:
        ModelError: if the configuration cannot be read.
    """
    source = model_source(profile.model_id)
    folder = local_folder(source, profile.revision)
    if folder is None or not (folder / "config.json").is_file():
        return _usual(profile)
    with quiet_transformers(), explained(source, profile.revision):
        config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    num_heads = int(text.num_attention_heads)
    return ModelDimensions(
        hidden_size=int(text.hidden_size),
        intermediate_size=int(text.intermediate_size),
        num_heads=num_heads,
        num_key_heads=int(text.num_key_value_heads),
        # Not every family's configuration has one, and it may be null.
        head_size=int(getattr(text, "head_dim", None) or text.hidden_size // num_heads),
        num_cells=_num_cells(profile, config),
    )


def _usual(profile: ModelProfile) -> ModelDimensions:
    """A Llama of this many heads."""
    hidden_size = profile.num_heads * _HEAD_SIZE
    return ModelDimensions(
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3,
        num_heads=profile.num_heads,
        num_key_heads=profile.num_heads,
        head_size=_HEAD_SIZE,
        num_cells=_num_cells(profile, None),
    )


def _num_cells(profile: ModelProfile, config: PreTrainedConfig | None) -> int:
    match profile.images.labels:
        case SquareGrid(side=side):
            return side * side
        case DynamicGrid(max_cells=num_cells):
            return num_cells
        case None if config is not None:
            return square_canvas(config)[1].num_cells
    return _NUM_CELLS

"""Gemma 4 31B and 26B-A4B: a tower over patches, averaged to cells; grids of any size.

In the mixture, every layer has a feed-forward network for all tokens and, beside it, many of which
a token meets a few; the router and each expert have scales of their own.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Gemma4TextConfig, PreTrainedConfig

from sdrpn_core.geometry import GridShape
from sdrpn_core.models.gemma import AnyGemma4Adapter
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures

MIXTURE_LAYERS = 30
"""Decoder layers of 26B-A4B."""


class Gemma4Adapter(AnyGemma4Adapter):
    """Adapter of ``Gemma4ForConditionalGeneration``."""

    defaults = AnyGemma4Adapter.defaults.model_copy(update={"width_per_head": 168})

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower over all images, padded to the most patches that one has."""
        counts = [grid.num_cells * self.patches_a_side**2 for grid in prepared.grids]
        pixels = list(torch.split(prepared.inputs["pixel_values"], counts))
        places = list(torch.split(prepared.inputs["image_position_ids"], counts))
        padded = pad_sequence(places, batch_first=True, padding_value=-1)  # as the stock processor
        output = self.model.get_image_features(
            pixel_values=pad_sequence(pixels, batch_first=True).to(self.device),
            image_position_ids=padded.to(self.device),
            return_dict=True,
        )
        return prepared.encoded(output.pooler_output)

    def of_patches(self, pixels: Tensor, places: Tensor, grid: GridShape) -> tuple[Tensor, Tensor]:
        """All patches, in single precision: the tower scales them before it rounds them."""
        del grid
        return pixels, places

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """As 31B, or 26B-A4B if it has as many layers, which is somewhat wider for its heads."""
        sizes = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size}
        if num_layers == MIXTURE_LAYERS:
            sizes = {
                "hidden_size": 176 * num_heads,
                "intermediate_size": 132 * num_heads,
                "enable_moe_block": True,
                "num_experts": 128,
                "top_k_experts": 8,
                "moe_intermediate_size": 44 * num_heads,
            }
        return Gemma4TextConfig(
            **sizes,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads // 2,
            num_global_key_value_heads=num_heads // 8,
            attention_k_eq_v=True,
            hidden_size_per_layer_input=0,
        )

"""LFM2-VL: SigLIP 2 tower, grids of any size, before a decoder of mixed layers.

Ten layers of sixteen are short convolutions, which hand on a state and have no heads
(``decoding/recurrent_layers.py``). A cell of the grid is a block of 2 x 2 patches of 16 pixels. The
stock processor shows a large image in up to ten tiles and then as a whole. Here an image is the
whole alone, of at most 256 cells, and what tiles are for, a crop does.
"""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import Lfm2Config, PreTrainedConfig

from data_contracts.profiles import DynamicGrid, FamilyDefaults, ImageSettings, SquareGrid
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.threads import in_threads


class Lfm2VlAdapter(DynamicAdapter):
    """Adapter of ``Lfm2VlForConditionalGeneration``."""

    defaults = FamilyDefaults(
        prompt=(
            "<|startoftext|><|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n"
        ),
        images=ImageSettings(
            labels=SquareGrid(side=16), answers=DynamicGrid(min_cells=64, max_cells=256)
        ),
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
        width_per_head=64,
    )
    image_text = "<|image_start|>{token}<|image_end|>"

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """What is left out here is as in LFM2-1.2B and its smaller relatives."""
        return Lfm2Config(
            hidden_size=hidden_size,
            intermediate_size=6 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            full_attn_idxs=[layer for layer in (2, 5, 8, 10, 12, 14) if layer < num_layers],
        )

    @classmethod
    def check_config(cls, config: PreTrainedConfig, model_id: str) -> None:
        """Refuse biases in short convolutions: columns without tokens would leave a state."""
        if getattr(config.get_text_config(decoder=True), "conv_bias", False):
            raise ModelError(
                f"{model_id}: its short convolutions have biases (conv_bias), with which padding "
                "would change answers: use a model without, as those of Liquid AI are"
            )

    def set_up(self) -> None:
        """Patches and how many are merged."""
        config, processor = self.model.config, self.image_processor
        self.patch_side = int(config.vision_config.patch_size)
        self.merged = int(config.downsample_factor)
        self.cell_side = self.patch_side * self.merged
        super().set_up()
        # Of LFM's own processor, by whose file another one was made.
        patch_side = getattr(processor, "encoder_patch_size", self.patch_side)
        merged = getattr(processor, "downsample_factor", self.merged)
        self.check_cells((int(patch_side), int(merged)), (self.patch_side, self.merged))

    def prepare_free(
        self, images: Sequence[Image.Image], letterboxes: Sequence[Letterbox], rule: DynamicGrid
    ) -> PreparedImages:
        """On grids rounded as by the stock processor, which may exceed the rule's bounds."""
        return self.draw(images, letterboxes, [self._rounded(box, rule) for box in letterboxes])

    def canvas_inputs(
        self, canvases: Sequence[Image.Image], grids: Sequence[GridShape]
    ) -> dict[str, Tensor]:
        """Rescaled, normalised and cut into patches by a stock processor, at their final size."""
        return {"patches": torch.cat(in_threads(self._patches, canvases))}

    @torch.inference_mode()
    def encode_prepared(self, prepared: PreparedImages) -> list[ImageFeatures]:
        """One pass of the tower over all images, each padded to the one of the most patches."""
        lengths = [grid.num_cells * self.merged**2 for grid in prepared.grids]
        patches = list(torch.split(prepared.inputs["patches"], lengths))
        is_patch = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        output = self.model.get_image_features(
            pixel_values=torch.nn.utils.rnn.pad_sequence(patches, batch_first=True).to(self.device),
            spatial_shapes=(torch.tensor(prepared.grids) * self.merged).to(self.device),
            pixel_attention_mask=is_patch.int().to(self.device),
            return_dict=True,
        )
        return prepared.encoded(output.pooler_output)

    def _rounded(self, letterbox: Letterbox, rule: DynamicGrid) -> GridShape:
        """The nearest cells of the image as it is, if these are neither too many nor too few."""
        height, width = (
            side / self.cell_side for side in (letterbox.canvas_height, letterbox.canvas_width)
        )
        nearest = GridShape(*(max(round(side), 1) for side in (height, width)))
        if rule.min_cells <= nearest.num_cells <= rule.max_cells:
            return nearest
        is_large = nearest.num_cells > rule.max_cells
        scale = math.sqrt((rule.max_cells if is_large else rule.min_cells) / (height * width))
        whole = math.floor if is_large else math.ceil
        return GridShape(*(max(whole(side * scale), 1) for side in (height, width)))

    def _patches(self, canvas: Image.Image) -> Tensor:
        """(P, 3 * s * s) of a canvas, row by row."""
        width, height = canvas.size
        prepared = self.image_processor(
            [canvas],
            do_resize=False,
            patch_size=self.patch_side,
            max_num_patches=height * width // self.patch_side**2,
            return_tensors="pt",
        )
        patches: Tensor = prepared["pixel_values"][0]
        return patches.to(self.dtype)

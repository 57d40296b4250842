"""What Gemma 3 and Gemma 4 share, and what all sizes of Gemma 4 do alike.

A cell of Gemma 4's grid is a square of patches (3 x 3 patches of 16 pixels) of the image, resized
to as many cells as it gets. Five of six decoder layers look back at a window of tokens, and in
those the tokens of an image also see those that follow them in it; these layers turn positions
otherwise than the sixth, and have smaller heads.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from data_contracts.profiles import DynamicGrid, FamilyDefaults, ImageSettings, SquareGrid
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.threads import in_threads

GRIDS = ImageSettings(
    fill=(0, 0, 0),
    labels=SquareGrid(side=23),
    answers=DynamicGrid(min_cells=560, max_cells=560),
)
"""As many cells as SD-RPN's authors train Gemma 4 12B on (arXiv 2609.19745), twice the stock
processor's; the letterbox of labels, as for Qwen, takes the largest square of them."""


def marked_image_token(adapter: ModelAdapter) -> str:
    """One image token between the markers that the model's configuration names."""
    config = adapter.model.config
    ids = [config.boi_token_id, adapter.image_token_id, config.eoi_token_id]
    return "".join(adapter.tokenizer.convert_ids_to_tokens(ids))


class AnyGemma4Adapter(DynamicAdapter):
    """A size of Gemma 4, whatever makes tokens of the patches of an image."""

    shows_images_whole = True

    defaults = FamilyDefaults(
        prompt=(
            "<bos><|turn>user\n{images}{question}<turn|>\n<|turn>model\n"
            "<|channel>thought\n<channel|>"
        ),
        images=GRIDS,
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
        width_per_head=240,
    )

    def set_up(self) -> None:
        """Patches and how many are averaged."""
        self.check_config(self.model.config, self.profile.model_id)
        vision = self.model.config.vision_config
        self.patch_side = int(vision.patch_size)
        self.patches_a_side = int(vision.pooling_kernel_size)
        self.cell_side = self.patch_side * self.patches_a_side
        super().set_up()
        processor = self.image_processor
        found = (int(processor.patch_size), int(processor.pooling_kernel_size))
        self.check_cells(found, (self.patch_side, self.patches_a_side))

    @classmethod
    def check_config(cls, config: PreTrainedConfig, model_id: str) -> None:
        """Refuse models without images, and the small ones.

        In E2B and E4B every layer takes a vector of its own for every token, made of which token it
        is and of its embedding, and the upper half of the layers takes the keys and values of a
        layer below. An RPN's copies would need the vectors of their layers beside the hidden states
        that they branch off; a layer without keys has none to score with; and an image cannot be
        withdrawn from layers that look at what lower ones kept of it.
        """
        if config.vision_config is None:
            raise ModelError(f"{model_id} takes no images: use a model that does")
        text = config.get_text_config(decoder=True)
        reasons = []
        if size := getattr(text, "hidden_size_per_layer_input", 0):
            reasons.append(f"each of its layers takes {size} numbers of its own for every token")
        if count := text.num_kv_shared_layers:
            reasons.append(f"its last {count} layers take keys and values of layers below")
        if reasons:
            raise ModelError(
                f"{model_id}: {' and '.join(reasons)}, which layers that are run one by one, and "
                "an RPN's copies of them, are not given: use Gemma 4 12B, 26B-A4B or 31B"
            )

    def image_placeholder(self) -> str:
        """One image token, between the markers that the stock processor writes."""
        return marked_image_token(self)

    def canvas_inputs(
        self, canvases: Sequence[Image.Image], grids: Sequence[GridShape]
    ) -> dict[str, Tensor]:
        """Rescaled by the stock processor, and cut up with the place of each piece."""
        cut = in_threads(lambda item: self._cut(*item), zip(canvases, grids, strict=True))
        pixels, places = zip(*cut, strict=True)
        return {"pixel_values": torch.cat(pixels), "image_position_ids": torch.cat(places)}

    def _cut(self, canvas: Image.Image, grid: GridShape) -> tuple[Tensor, Tensor]:
        """What the model takes of a canvas: from the patches into which its processor cuts it."""
        prepared = self.image_processor([canvas], do_resize=False, return_tensors="pt")
        count = grid.num_cells * self.patches_a_side**2  # padding follows
        pixels, places = prepared["pixel_values"], prepared["image_position_ids"]
        return self.of_patches(pixels[0, :count], places[0, :count], grid)

    @abstractmethod
    def of_patches(self, pixels: Tensor, places: Tensor, grid: GridShape) -> tuple[Tensor, Tensor]:
        """What the model takes.

        Args:
            pixels: (P, pixels) of the patches of an image, row by row, between 0 and 1.
            places: (P, 2) column and row of each patch.
            grid: of the image's cells.
        """

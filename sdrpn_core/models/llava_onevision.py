"""LLaVA-OneVision: SigLIP tower, square letterbox, fixed 27x27 grid with a newline behind it.

Its stock processor cuts an image that is alone into tiles. Images that are not alone are one tile
each, padded to a square, and the model was trained on those too: here every image is one, so that
a crop beside it changes nothing about it.
"""

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from data_contracts.profiles import FamilyDefaults
from data_contracts.training import QWEN_TRAINING
from sdrpn_core.models.images import processed
from sdrpn_core.models.newline import NewlineAdapter


class LlavaOnevisionAdapter(NewlineAdapter):
    """Adapter of ``LlavaOnevisionForConditionalGeneration``."""

    # The decoder is Qwen's, so its RPN is made and trained as Qwen2.5-VL's.
    defaults = FamilyDefaults(
        prompt="<|im_start|>user {images}\n{question}<|im_end|><|im_start|>assistant\n",
        final_norm=False,
        rotary_scores=True,
        training=QWEN_TRAINING,
        num_cells=729,
    )

    def default_fill(self) -> tuple[int, int, int]:
        """The processor's mean colour, rounded down as it does."""
        red, green, blue = (int(255 * mean) for mean in self.image_processor.image_mean)
        return red, green, blue

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised; in pairs, for what is alone would be cut into tiles."""
        pairs = [[canvas, canvas] for canvas in canvases]
        inputs = processed(self.image_processor, pairs, self.dtype, do_resize=False)
        return {"pixel_values": inputs["pixel_values"][::2].flatten(0, 1)}

    def _encode_pixels(self, pixels: Tensor) -> Iterable[Tensor]:
        """Cells of each; the stock model puts a newline behind them, whatever their number."""
        features = self.model.get_image_features(
            pixel_values=pixels,
            image_sizes=torch.tensor([pixels.shape[2:]] * len(pixels)),
            batch_num_images=torch.tensor([len(pixels) + 1]),  # so that none is alone
            return_dict=True,
        )
        return [tokens[:-1] for tokens in features.pooler_output]

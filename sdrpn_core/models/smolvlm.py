"""SmolVLM and Idefics3: SigLIP tower, one square tile an image, nine or more patches a token."""

from collections.abc import Iterable, Sequence

from PIL import Image
from torch import Tensor

from data_contracts.profiles import FamilyDefaults
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.stretched import StretchedAdapter


class SmolVlmAdapter(StretchedAdapter):
    """Adapter of ``SmolVLMForConditionalGeneration`` and ``Idefics3ForConditionalGeneration``."""

    # The decoder is Llama's, so its RPN is made and trained as LLaVA's.
    defaults = FamilyDefaults(
        prompt="<|im_start|>User:{images}{question}<end_of_utterance>\nAssistant:",
        width_per_head=64,
        num_cells=81,
    )
    one_tile = {"do_image_splitting": False, "do_pad": False}
    image_text = "<fake_token_around_image><global-img>{token}<fake_token_around_image>"

    def set_up(self) -> None:
        """Tiles must be as large as the tower takes them."""
        super().set_up()
        tile = int(self.image_processor.max_image_size["longest_edge"])
        if tile != self.input_side:
            raise ModelError(
                f"{self.profile.model_id}: its image processor cuts tiles of {tile} pixels, its "
                f"vision tower is made for {self.input_side}: use a model that sees tiles at the "
                "tower's size, such as SmolVLM"
            )

    def canvas_inputs(self, canvases: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Rescaled and normalised; the stock processor gives the images of one prompt an axis."""
        inputs = super().canvas_inputs(canvases)
        return {"pixel_values": inputs["pixel_values"].flatten(0, 1)}

    def _encode_pixels(self, pixels: Tensor) -> Iterable[Tensor]:
        return super()._encode_pixels(pixels[:, None])

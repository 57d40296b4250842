"""GLM-4.1V and GLM-4.6V-Flash: dynamic or square grids, multimodal rotary positions.

Images and positions are Qwen2-VL's: patches of 14 pixels merged two by two, three axes. The tower
takes any grid, its learnt positions are resampled to it. The decoder norms what attention and
feed-forward network give, once more, and turns half of each head, in pairs; that is the stock
model's affair.
"""

from collections.abc import Sequence
from functools import cached_property

from transformers import Glm4vTextConfig, PreTrainedConfig

from data_contracts.profiles import DynamicGrid, ImageSettings, SquareGrid
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter

_MARKS = ("<|begin_of_box|>", "<|end_of_box|>", "</answer>")
"""What the models write around an answer. To the tokenizer they are text like any other."""


class Glm4vAdapter(Qwen2_5VlAdapter):
    """Adapter of ``Glm4vForConditionalGeneration``."""

    # As the chat template of GLM-4.5V and later writes a question that is to be answered without a
    # thought: an order, and a thought that is over.
    defaults = Qwen2_5VlAdapter.defaults.model_copy(
        update={
            "prompt": (
                "[gMASK]<sop><|user|>\n{images}{question}/nothink<|assistant|>\n<think></think>\n"
            ),
            "images": ImageSettings(
                labels=SquareGrid(side=24), answers=DynamicGrid(min_cells=576, max_cells=576)
            ),
        }
    )
    image_text = "<|begin_of_image|><|image|><|end_of_image|>"

    @staticmethod
    def usual_text_config(num_layers: int, num_heads: int, hidden_size: int) -> PreTrainedConfig:
        """What is left out here is as in GLM-4.1V-9B: two heads of keys for all."""
        return Glm4vTextConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
        )

    @property
    def pixels_a_cell(self) -> int:
        """An image counts as often as a patch has frames, as if it were a video of itself."""
        return super().pixels_a_cell * int(self.image_processor.temporal_patch_size)

    def decode_tokens(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, without what marks the answer in it."""
        return super().decode_tokens([token for token in tokens if token not in self._mark_ids])

    @cached_property
    def _mark_ids(self) -> frozenset[int]:
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return frozenset(vocabulary[mark] for mark in _MARKS if mark in vocabulary)

    def _tokens(self, prompt: str) -> list[int]:
        """As the prompt stands: it has what begins a text, which tokenizers of GLM may add too."""
        return list(self.text_tokens(prompt))

"""One tiny random model per family, loaded twice: by its adapter and as the stock class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from data_contracts.profiles import RpnShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from tests.families.registry import FAMILY_MODELS, FamilyModel, Inputs, stock_inputs
from tests.image_files import noise

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]
SIZES = [(60, 40), (30, 50), (45, 45), (80, 20)]
"""(width, height): wide, tall, square and very wide."""


@dataclass(frozen=True)
class Loaded:
    """A family's model on both sides of the comparison."""

    name: str
    family: FamilyModel
    adapter: ModelAdapter
    stock: Any
    """The stock class with eager attention, which can return all its attention maps."""

    def assert_close(self, ours: torch.Tensor, wanted: torch.Tensor) -> None:
        """Equal but for rounding."""
        rounding = self.family.rounding
        torch.testing.assert_close(ours, wanted, atol=2e-5 * rounding, rtol=1e-5 * rounding)

    @property
    def layers_with_heads(self) -> list[int]:
        """Those whose attention maps the stock model returns, in order."""
        layers = self.stock.get_decoder().layers
        return [index for index, layer in enumerate(layers) if hasattr(layer, "self_attn")]

    @property
    def shape(self) -> RpnShape:
        """The RPN of the profile."""
        return self.adapter.profile.rpn

    def inputs(self, question: str, images: list[Image.Image], **kwargs: Any) -> Inputs:
        """Stock inputs of the profile's prompt."""
        return stock_inputs(self.family, self.adapter, question, images, **kwargs)

    def is_cell(self, inputs: Inputs) -> torch.Tensor:
        """(L,) whether a token of the only prompt stands for a cell."""
        return self.family.image_cells(self.adapter, inputs["input_ids"][0])

    def next_token_logits(self, inputs: Inputs) -> torch.Tensor:
        """(vocabulary,) of the stock forward, image token barred as the adapter does."""
        with torch.no_grad():
            logits: torch.Tensor = self.stock(**inputs).logits[0, -1]
        logits[self.adapter.image_token_id] = float("-inf")
        return logits

    def layer_inputs(self, inputs: Inputs, layer: int) -> torch.Tensor:
        """(L, d) that the stock model feeds to a decoder layer."""
        seen: list[torch.Tensor] = []
        hook = (
            self.stock.get_decoder()
            .layers[layer]
            .register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        )
        try:
            with torch.inference_mode():
                self.stock(**inputs)
        finally:
            hook.remove()
        return seen[0][0]


@pytest.fixture(scope="session")
def load_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    """A family by its name, made once in a process: files of tests may come one by one."""

    @cache
    def load(name: str) -> Loaded:
        directory: Path = tmp_path_factory.mktemp(name)
        family = FAMILY_MODELS[name]
        profile = family.build(directory)
        # Scores that can be compared with the frozen layer's own: rotary, and no extra norm.
        plain = profile.rpn.model_copy(update={"final_norm": False, "rotary_scores": True})
        profile = profile.model_copy(update={"rpn": plain})
        stock = AutoModelForImageTextToText.from_pretrained(directory, attn_implementation="eager")
        if family.stock_masks is not None:
            stock.register_forward_pre_hook(
                partial(_put_masks, family.stock_masks), with_kwargs=True
            )
        return Loaded(name, family, load_adapter(profile, device="cpu"), stock.eval())

    return load


@pytest.fixture(scope="package", params=sorted(FAMILY_MODELS))
def loaded(request: pytest.FixtureRequest, load_family: Callable[[str], Loaded]) -> Loaded:
    """The family under test."""
    return load_family(str(request.param))


def _put_masks(
    make: Callable[[Any, Inputs], Any], stock: Any, args: tuple[Any, ...], inputs: Inputs
) -> tuple[tuple[Any, ...], Inputs]:
    """Within ``generate``, masks are made already."""
    if isinstance(inputs.get("attention_mask"), torch.Tensor):
        inputs = inputs | {"attention_mask": make(stock, inputs)}
    return args, inputs


@pytest.fixture(scope="package")
def images() -> list[Image.Image]:
    """Noise of mixed sizes."""
    return noise(SIZES)


@pytest.fixture(scope="package")
def crops(images: list[Image.Image]) -> list[list[Image.Image]]:
    """None, one or two crops of each image."""
    counts = [1, 2, 0, 1]
    return [
        [image.crop((3 + i, 2, 19, 15 + 2 * i)) for i in range(count)]
        for image, count in zip(images, counts, strict=True)
    ]

"""The MiniCPM-V adapter against the stock class fed by the stock image processor."""

from pathlib import Path

import torch

from sdrpn_core.models.loading import load_adapter
from tests.families.minicpm import tiny_minicpmv4_6
from tests.stock_generation import check_generates_as_stock
from tests.zoom_checks import random_images


@torch.inference_mode()
def test_generates_what_the_stock_model_does_from_the_stock_processor(tmp_path: Path) -> None:
    """Two images of one prompt, each with its number; the whole processor needs torchvision."""
    adapter = load_adapter(tiny_minicpmv4_6(tmp_path), device="cpu")
    images, question = random_images([(90, 60), (40, 70)]), "what is the red word"
    prompt = adapter.embed_prompt(question, adapter.encode_images(images))
    settings = {"slice_mode": False, "downsample_mode": "4x"}
    inputs = adapter.image_processor(images, return_tensors="pt", **settings)
    first, second = ("<|image_pad|>" * (h * w // 4) for h, w in inputs["target_sizes"].tolist())
    text = (
        "<|im_start|>user\n"
        f"<image_id>0</image_id><image>{first}</image>\n"
        f"<image_id>1</image_id><image>{second}</image>\n"
        f"{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    pixels = {name: inputs[name] for name in ("pixel_values", "target_sizes")}
    check_generates_as_stock(adapter, prompt, text, pixels | {"downsample_mode": "4x"})

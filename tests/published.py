"""What the authors of SD-RPN publish, made small: label pickles and full-model checkpoints.

Names, shapes and precisions are those of their code, written down here once more and apart from the
code under test.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from data_contracts.profiles import ModelProfile, RpnShape
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.network import RegionProposalNetwork
from tests.mixes import write_image
from tests.tiny_models import tiny_llava

Row = dict[str, Any]


def published_map(seed: int, side: int = 24) -> np.ndarray:
    """A bright spot on a dim grid, as attention looks; (side, side) float64."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 2e-4, (side, side))
    y, x = rng.integers(4, side - 6, 2)
    values[y : y + 3, x : x + 2] += 0.03
    return values


def llava_row(number: int, dtype: type = np.float16) -> Row:
    """A row as ``model_vqa_label.py`` writes it: flat maps."""
    folder = ("gqa/images", "ocr_vqa/images")[number % 2]
    sink = np.full(576, 1e-5)
    sink[number] = 0.5
    grounding = published_map(number).ravel()
    return {
        "question_id": str(1000 + number),
        "prompt": f"What is number {number}?\nAnswer the question using a single word or phrase.",
        "text": "a sign",
        "image": f"{folder}/{number}.png",
        "sink_attn": sink.astype(dtype),
        "grounding_attn_o2i": (grounding * (sink < 1e-3)).astype(dtype),
        "grounding_attn_q2i": published_map(number + 500).ravel().astype(dtype),
    }


def qwen_row(number: int, *, natural: bool) -> Row:
    """A row as ``make_pseudo_label_natural.py`` or ``..._textual.py`` writes it: (24, 24) maps."""
    sink = np.zeros((24, 24))
    if natural:
        sink[0, number % 24] = 0.2
    row = llava_row(2 * number + (not natural))
    del row["grounding_attn_q2i"]
    return row | {"sink_attn": sink, "grounding_attn_o2i": published_map(number)}


def write_pickle(path: Path, rows: object, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    """Write rows as the authors' scripts do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(rows, protocol))
    return path


def write_row_images(folder: Path, rows: list[Row], size: tuple[int, int] = (48, 32)) -> Path:
    """The image of every row."""
    for number, row in enumerate(rows):
        write_image(folder / row["image"], number, size)
    return folder


def random_rpn(decoder: Any, shape: RpnShape, seed: int = 1) -> RegionProposalNetwork:
    """An RPN beside a decoder whose parameters are no longer the model's."""
    network = RegionProposalNetwork.copied_from(decoder, shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.requires_grad_(False)


def twig_tensors(
    decoder: Any, network: RegionProposalNetwork, shape: RpnShape
) -> dict[str, Tensor]:
    """``model.twig_layers.*`` and ``model.twig_norm.weight`` with this network in them."""
    tensors: dict[str, Tensor] = {}
    for index in range(shape.depth):
        state = decoder.layers[shape.branch_layer + index].state_dict()
        if index < shape.depth - 1:
            state = network.layers[index].state_dict()
        else:
            scoring = network.scoring
            state["input_layernorm.weight"] = scoring.input_norm.weight
            for name in ("q_proj", "k_proj"):
                for parameter, value in getattr(scoring, name).state_dict().items():
                    state[f"self_attn.{name}.{parameter}"] = value
        tensors |= {f"model.twig_layers.{index}.{name}": value for name, value in state.items()}
    norm = network.scoring.final_norm or decoder.norm
    return tensors | {"model.twig_norm.weight": norm.weight}


def llava_tensors(model: Any) -> dict[str, Tensor]:
    """A stock LLaVA under the names of the original LLaVA; its tower is loaded from elsewhere."""
    named = {f"model.{n}": t for n, t in model.model.language_model.state_dict().items()}
    projector = model.model.multi_modal_projector
    for place, linear in (("0", projector.linear_1), ("2", projector.linear_2)):
        for name, value in linear.state_dict().items():
            named[f"model.mm_projector.{place}.{name}"] = value
    return named | {
        "lm_head.weight": model.lm_head.weight,
        "twig_head.weight": model.lm_head.weight,
    }


def qwen_tensors(model: Any) -> dict[str, Tensor]:
    """A stock Qwen2.5-VL under the names of the hub and of the authors' fork."""
    named = {f"model.{n}": t for n, t in model.model.language_model.state_dict().items()}
    named |= {f"visual.{n}": t for n, t in model.model.visual.state_dict().items()}
    return named | {
        "lm_head.weight": model.lm_head.weight,
        "twig_head.weight": model.lm_head.weight,
    }


def published_config(model: Any, model_type: str, shape: RpnShape) -> dict[str, Any]:
    """``config.json`` of a full model: the text model's settings at top level."""
    text = model.config.get_text_config(decoder=True)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        "model_type": model_type,
        **{key: getattr(text, key) for key in (*keys, "num_key_value_heads", "vocab_size")},
        "enable_twig": True,
        "twig_K": shape.branch_layer,
        "twig_T": shape.depth,
        "roi_branch": True,
        "roi_loss": "bce",
        "roi_multi_head": True,
        "roi_source": "qk",
        "roi_super_type": "v1",
    }


def write_checkpoint(
    folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], num_shards: int = 1
) -> Path:
    """Write a checkpoint folder as ``save_pretrained`` does."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    copies = {name: tensor.detach().clone() for name, tensor in sorted(tensors.items())}
    if num_shards == 1:
        save_file(copies, folder / "model.safetensors", {"format": "pt"})
        return folder
    located = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        # The RPN fills the last file, so that tests can do without the others.
        part = {
            name: tensor
            for number, (name, tensor) in enumerate(copies.items())
            if shard == (num_shards - 1 if "twig" in name else number % (num_shards - 1))
        }
        save_file(part, folder / file, {"format": "pt"})
        located |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": located}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def published_llava(
    folder: Path, **changed: Any
) -> tuple[Path, ModelProfile, RegionProposalNetwork]:
    """A merged checkpoint, the profile of its model and the RPN that was put into it."""
    profile = tiny_llava(folder / "model")
    model = load_adapter(profile, device="cpu").model
    decoder = model.get_decoder()
    network = random_rpn(decoder, profile.rpn)
    tensors = llava_tensors(model) | twig_tensors(decoder, network, profile.rpn)
    config = published_config(model, "llava_llama", profile.rpn) | changed
    checkpoint = write_checkpoint(folder / "tiny-roi-K2T3-filled", tensors, config, num_shards=3)
    return checkpoint, profile, network

"""Names of tensors and settings in the authors' full checkpoints, by family.

An RPN lies in such a checkpoint as ``model.twig_layers.0`` to ``R-1`` (whole decoder layers, of the
last of which only norm, query and key are used) and ``model.twig_norm``; ``twig_K`` and ``twig_T``
in its ``config.json`` are B and R.
"""

import re
from dataclasses import dataclass

_NUMBER = "(?P<index>0|[1-9][0-9]{0,3})"
LAYER = re.compile(rf"(?P<prefix>.*?)twig_layers\.{_NUMBER}\.(?P<rest>.+)")
BASE_LAYER = re.compile(rf"(?P<prefix>.*?)layers\.{_NUMBER}\.(?P<rest>.+)")
FINAL_NORM = "twig_norm.weight"
TEXT_PREFIX = "model."
"""Before ``layers``, ``twig_layers`` and ``norm`` in published checkpoints of every family."""

RPN_CONFIG = "sdrpn_rpn.json"
"""Our RPN configuration in checkpoints that we write; the authors' have none."""

_SCORING = {
    "input_layernorm.weight": "input_norm.weight",
    "self_attn.q_proj.weight": "q_proj.weight",
    "self_attn.q_proj.bias": "q_proj.bias",
    "self_attn.k_proj.weight": "k_proj.weight",
    "self_attn.k_proj.bias": "k_proj.bias",
}
"""Last layer's tensor -> scoring head's."""


@dataclass(frozen=True)
class PublishedFamily:
    """How one model family looks in the authors' checkpoints, and how they use its RPN."""

    family: str
    """Adapter of the stock model."""
    model_type: str
    architecture: str
    prefixes: tuple[tuple[str, str], ...]
    """Start of a stock model's parameter name -> of the published one; the first that fits."""
    uses_final_norm: bool
    rotary_scores: bool
    regions: str
    """Preset of region settings that is the authors' own."""
    threshold: float
    """One of the authors' thresholds, which they choose per benchmark."""
    prompt: str | None = None
    """Prompt that the published networks were trained with, where profiles put it otherwise."""


LLAVA = PublishedFamily(
    family="llava",
    model_type="llava_llama",
    architecture="LlavaLlamaForCausalLM",
    prefixes=(
        ("model.language_model.", "model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("lm_head.", "lm_head."),
    ),
    uses_final_norm=True,
    rotary_scores=False,
    regions="reference-boxes",
    threshold=0.15,
)
QWEN2_5_VL = PublishedFamily(
    family="qwen2_5_vl",
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    prefixes=(
        ("model.language_model.", "model."),
        ("model.visual.", "visual."),
        ("lm_head.", "lm_head."),
    ),
    uses_final_norm=False,
    rotary_scores=True,
    regions="reference-mask",
    threshold=0.05,
    # Training replaced an <image> before the question, whatever the scripts for labels asked first.
    prompt=(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "{images}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ),
)
FAMILIES = (LLAVA, QWEN2_5_VL)


def rpn_name(layer: int, rest: str, depth: int) -> str | None:
    """Our name of a tensor of ``twig_layers.{layer}``; None if the RPN does not use it."""
    if layer < depth - 1:
        return f"layers.{layer}.{rest}"
    return f"scoring.{_SCORING[rest]}" if rest in _SCORING else None


def published_name(name: str, depth: int) -> str:
    """Name in published checkpoints of one of an RPN's tensors, without ``model.``.

    Raises:
        KeyError: if the authors' layers have no such tensor.
    """
    if name == "scoring.final_norm.weight":
        return FINAL_NORM
    if name.startswith("layers."):
        return f"twig_{name}"
    rests = {ours: rest for rest, ours in _SCORING.items()}
    return f"twig_layers.{depth - 1}.{rests[name.removeprefix('scoring.')]}"


def published_base_name(name: str, family: PublishedFamily) -> str | None:
    """Published name of one of the stock model's parameters; None if there is none."""
    for ours, theirs in family.prefixes:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return None

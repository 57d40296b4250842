"""Tiny random Qwen-VL models of the stock classes, with the real chat markers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Cosmos3OmniConfig,
    Cosmos3OmniForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from data_contracts.enums import QuestionKind
from data_contracts.profiles import (
    DynamicGrid,
    ExtractionInstruction,
    HeadSelection,
    ImageSettings,
    ModelProfile,
    RpnShape,
    SinkHeads,
    SquareGrid,
)
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from sdrpn_core.models.qwen3_5 import Qwen3_5Adapter
from sdrpn_core.models.qwen3_vl import Qwen3VlAdapter
from sdrpn_core.models.qwen3_vl_moe import Qwen3VlMoeAdapter
from tests.tiny_models import WORDS, perturb_constants

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
NUM_LAYERS = 7
NUM_HEADS = 4
PATCH = 4
IMAGES = ImageSettings(
    fill=(127, 127, 127),
    labels=SquareGrid(side=5),
    answers=DynamicGrid(min_cells=4, max_cells=30),
)


def _rotary(sections: list[int], *, interleaved: bool) -> dict[str, Any]:
    plain = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    return plain | {"mrope_interleaved": True} if interleaved else plain


TOWER_3 = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 48,
    "patch_size": PATCH,
    "num_position_embeddings": 64,
}
PROCESSOR_3 = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"shortest_edge": 64, "longest_edge": 4096},
}
"""Of Qwen3-VL and Qwen3.5 alike."""
DEEPSTACK = {"deepstack_visual_indexes": [0, 1]}
_TEXT_3 = {"rope_parameters": _rotary([4, 2, 2], interleaved=True), "head_dim": 16}
TEXT_3_5 = {
    "rope_parameters": _rotary([2, 1, 1], interleaved=True) | {"partial_rotary_factor": 0.5},
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": [
        "full_attention" if layer % 3 == 1 else "linear_attention" for layer in range(NUM_LAYERS)
    ],
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def tiny_qwen2_vl(directory: Path) -> ModelProfile:
    """A tower without windows; the decoder is that of Qwen2.5-VL."""
    torch.manual_seed(0)
    tower = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 48, "patch_size": PATCH}
    text = {"rope_parameters": _rotary([2, 2, 2], interleaved=False)}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**_sizes(text, tower)))
    processor = {"image_processor_type": "Qwen2VLImageProcessor"}
    _save(model, directory, processor | {"min_pixels": 64, "max_pixels": 4096})
    return qwen_profile("qwen2_vl", directory, Qwen2_5VlAdapter.defaults.prompt)


def tiny_qwen2_5_vl(directory: Path) -> ModelProfile:
    """Window attention in the first tower layer, grouped keys, biases, sections of three axes."""
    torch.manual_seed(0)
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 48,
        "patch_size": PATCH,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
    }
    text = {"rope_parameters": _rotary([2, 2, 2], interleaved=False)}
    config = Qwen2_5_VLConfig(**_sizes(text, tower))
    model = Qwen2_5_VLForConditionalGeneration(config)
    processor = {"image_processor_type": "Qwen2VLImageProcessor"}
    _save(model, directory, processor | {"min_pixels": 64, "max_pixels": 4096})
    return qwen_profile("qwen2_5_vl", directory, Qwen2_5VlAdapter.defaults.prompt)


def tiny_qwen3_vl(directory: Path) -> ModelProfile:
    """Two deepstack layers, query and key norms, interleaved axes, head size of its own."""
    torch.manual_seed(2)
    config = Qwen3VLConfig(**_sizes(_TEXT_3, TOWER_3 | DEEPSTACK))
    _save(Qwen3VLForConditionalGeneration(config), directory, PROCESSOR_3)
    return qwen_profile("qwen3_vl", directory, Qwen3VlAdapter.defaults.prompt)


def tiny_cosmos3_omni(directory: Path) -> ModelProfile:
    """As Qwen3-VL."""
    torch.manual_seed(0)
    config = Cosmos3OmniConfig(**_sizes(_TEXT_3, TOWER_3 | DEEPSTACK))
    _save(Cosmos3OmniForConditionalGeneration(config), directory, PROCESSOR_3)
    return qwen_profile("cosmos3_omni", directory, Qwen3VlAdapter.defaults.prompt)


def tiny_qwen3_vl_moe(directory: Path) -> ModelProfile:
    """Experts in all layers but one, which is among those that the RPN copies."""
    torch.manual_seed(4)
    text = _TEXT_3 | _EXPERTS | {"mlp_only_layers": [3]}
    config = Qwen3VLMoeConfig(**_sizes(text, TOWER_3 | DEEPSTACK))
    _save(Qwen3VLMoeForConditionalGeneration(config), directory, PROCESSOR_3)
    return qwen_profile("qwen3_vl_moe", directory, Qwen3VlMoeAdapter.defaults.prompt)


def tiny_qwen3_5(directory: Path) -> ModelProfile:
    """Two layers of three hand on a state; the others gate their output and turn half of a head."""
    torch.manual_seed(0)
    tokenizer = byte_pair_tokenizer()
    text = TEXT_3_5 | {"vocab_size": len(tokenizer)}
    model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(**_sizes(text, TOWER_3)))
    return _saved_qwen3_5("qwen3_5", model, directory, tokenizer)


def tiny_qwen3_5_moe(directory: Path) -> ModelProfile:
    """Experts in every layer, of either kind, beside one that every token meets."""
    torch.manual_seed(0)
    tokenizer = byte_pair_tokenizer()
    text = TEXT_3_5 | _EXPERTS | {"vocab_size": len(tokenizer)}
    text |= {"shared_expert_intermediate_size": 24}
    model = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(**_sizes(text, TOWER_3)))
    return _saved_qwen3_5("qwen3_5_moe", model, directory, tokenizer)


def _saved_qwen3_5(
    family: str, model: PreTrainedModel, directory: Path, tokenizer: Qwen3_5Tokenizer
) -> ModelProfile:
    lengthen_states(model)
    _save(model, directory, PROCESSOR_3, tokenizer)
    return with_mixed_layers(qwen_profile(family, directory, Qwen3_5Adapter.defaults.prompt))


def lengthen_states(model: PreTrainedModel) -> None:
    """Of layers that hand on a state: they last for tens of columns, not for one."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            nn.init.uniform_(parameter, -6.0, -3.0)


def with_mixed_layers(profile: ModelProfile) -> ModelProfile:
    """A profile that names heads of the layers that have any in ``TEXT_3_5``."""
    heads = {
        QuestionKind.NATURAL: HeadSelection(
            grounding={1: (0, 3), 4: (1,)}, sink=SinkHeads(heads={1: (2,)})
        ),
        QuestionKind.TEXTUAL: HeadSelection(grounding={4: (2,)}),
    }
    return profile.model_copy(update={"heads": heads})


def qwen_tokenizer(
    special: Sequence[str] = SPECIAL, end: str = "<|im_end|>", pad: str = "<|endoftext|>"
) -> PreTrainedTokenizerFast:
    """Word-level tokenizer with Qwen's markers; it has no token to begin a text with."""
    vocabulary = {word: index for index, word in enumerate([*special, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=pad,
        unk_token="<unk>",
        additional_special_tokens=list(special),
    )


def byte_pair_tokenizer() -> Qwen3_5Tokenizer:
    """Qwen3.5's own: transformers makes no other beside a model of this type."""
    tokenizer = Qwen3_5Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(min_frequency=1, show_progress=False, special_tokens=SPECIAL)
    tokenizer.train_from_iterator([*WORDS, *(f" {word}" for word in WORDS), "\n"], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    made = Qwen3_5Tokenizer(vocab=learnt["vocab"], merges=merges, eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    return made


def decoder_sizes(special: Sequence[str] = SPECIAL) -> dict[str, Any]:
    """Settings of a tiny decoder beside ``qwen_tokenizer``."""
    return {
        "vocab_size": len(special) + 1 + len(WORDS),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Random models attend almost evenly; a wide init makes attention rows differ.
        "initializer_range": 0.25,
    }


def _sizes(text: dict[str, Any], tower: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": decoder_sizes() | text,
        "vision_config": tower | {"initializer_range": 0.25},
        "image_token_id": SPECIAL.index("<|image_pad|>"),
        "video_token_id": SPECIAL.index("<|video_pad|>"),
        "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
        "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
    }


def _save(
    model: PreTrainedModel,
    directory: Path,
    processor: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write weights, tokenizer and the processor file in the form that the hub has it."""
    perturb_constants(model)
    save_answering(model, tokenizer or qwen_tokenizer(), directory, "<|im_end|>", "<|endoftext|>")
    cut = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor | cut))


def save_answering(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, *ends: str
) -> None:
    """Write a model and its tokenizer, such that these tokens end an answer."""
    ids = tokenizer.convert_tokens_to_ids(list(ends))
    # A louder end token makes answers end at different lengths, as real ones do.
    model.get_output_embeddings().weight.data[ids[0]] *= 2
    model.generation_config.eos_token_id = ids
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def qwen_profile(
    family: str, directory: Path, prompt: str, images: ImageSettings = IMAGES
) -> ModelProfile:
    """Profile of a tiny model with a decoder of Qwen's."""
    return ModelProfile(
        name=f"tiny-{family}",
        family=family,
        model_id=str(directory),
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        prompt=prompt,
        images=images,
        extraction_instructions={
            QuestionKind.NATURAL: ExtractionInstruction(
                replaces="a blue", instruction="where is it"
            )
        },
        heads={
            QuestionKind.NATURAL: HeadSelection(
                grounding={2: (0, 3), 4: (1,)}, sink=SinkHeads(heads={1: (2,)})
            ),
            QuestionKind.TEXTUAL: HeadSelection(grounding={3: (2,)}),
        },
        rpn=RpnShape(branch_layer=2, depth=3, final_norm=False, rotary_scores=True),
        source="random weights",
    )

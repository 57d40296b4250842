"""The reference MLLM: a tiny stock LLaVA (CLIP vision tower, Llama decoder) and its processor.

Grid 12 x 12 (96-pixel input, 8-pixel patches); word-level tokenizer over ``vocabulary``. The
processor resizes only: the letterbox is drawn before it.
"""

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from sdrpn_core.reference.views import GRID, INPUT_SIDE, PATCH_SIDE, PIXEL_MEAN, PIXEL_STD
from sdrpn_core.reference.vocabulary import SHORT_ANSWER_SUFFIX, TOKEN_IDS

DECODER_WIDTH: Final = 128
DECODER_LAYERS: Final = 8
TOWER_WIDTH: Final = 128
TOWER_LAYERS: Final = 5
NUM_IMAGE_TOKENS: Final = GRID.num_cells
_EMBEDDING_SEED: Final = 7
_TOWER_HEADS: Final = TOWER_WIDTH // 32


def reference_model_path() -> Path:
    """Folder of the packaged weights, tokenizer and processor, for ``from_pretrained``."""
    return Path(__file__).parent / "weights"


def prompt_for(question: str, num_images: int = 1) -> str:
    """Prompt text of a question; every ``<image>`` is expanded by the processor.

    Args:
        question: with or without the short-answer suffix, which is added if missing.
        num_images: 1 for the image, 2 for the image and a crop of it.
    """
    if not question.endswith(SHORT_ANSWER_SUFFIX):
        question = question + SHORT_ANSWER_SUFFIX
    return f"USER: {'<image>' * num_images}\n{question} ASSISTANT:"


def new_model(seed: int) -> LlavaForConditionalGeneration:
    """Untrained model whose word embeddings are fixed unit vectors, tied with the output."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=3 * TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=_TOWER_HEADS,
        image_size=INPUT_SIDE,
        patch_size=PATCH_SIDE,
        projection_dim=TOWER_WIDTH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(TOKEN_IDS),
        hidden_size=DECODER_WIDTH,
        intermediate_size=3 * DECODER_WIDTH,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=TOKEN_IDS["<s>"],
        eos_token_id=TOKEN_IDS["</s>"],
        pad_token_id=TOKEN_IDS["<pad>"],
        initializer_range=0.02,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=TOKEN_IDS["<image>"],
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(word_embeddings())
    model.tie_weights()
    model.generation_config.max_new_tokens = 8
    model.generation_config.do_sample = False
    model.generation_config.bos_token_id = TOKEN_IDS["<s>"]
    model.generation_config.eos_token_id = TOKEN_IDS["</s>"]
    model.generation_config.pad_token_id = TOKEN_IDS["<pad>"]
    return model


def word_embeddings() -> torch.Tensor:
    """Fixed unit-norm embeddings (vocabulary, width) that tower and decoder are trained against."""
    generator = torch.Generator().manual_seed(_EMBEDDING_SEED)
    gaussian = torch.randn(len(TOKEN_IDS), DECODER_WIDTH, generator=generator)
    return torch.nn.functional.normalize(gaussian, dim=-1)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer: lower-cases, splits on spaces and punctuation, starts with ``<s>``."""
    backend = Tokenizer(models.WordLevel(dict(TOKEN_IDS), unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[?:.,]"), behavior="isolated"),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    _prepend_bos(tokenizer)
    return tokenizer


def new_processor() -> LlavaProcessor:
    """Processor for canvases that are letterboxed already: it changes no geometry."""
    # Imported where it is needed: without torchvision the import alone logs a warning.
    from transformers import CLIPImageProcessor

    image_processor = CLIPImageProcessor(
        do_resize=True,
        size={"height": INPUT_SIDE, "width": INPUT_SIDE},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=new_tokenizer(),
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _prepend_bos(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", TOKEN_IDS["<s>"])]
    )

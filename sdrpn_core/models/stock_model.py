"""A stock model with its tokenizer and image processor, as transformers loads them.

This is the only place that asks transformers for a model's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BaseImageProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.utils import GENERATION_CONFIG_NAME

from sdrpn_core.models.devices import DeviceMap
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.generation_settings import check_tokens
from sdrpn_core.models.hub import local_folder

_RELATIVES: dict[str, type[BaseImageProcessor]] = {
    "gemma4_unified": Gemma4ImageProcessorPil,  # patches before they are merged
    "lfm2_vl": Siglip2ImageProcessorPil,  # an image that has its size already
}

_TOKENIZER_SETTINGS: dict[str, dict[str, Any]] = {
    # The tokenizer of the repository's tokenizer.json, with the split of words that Mistral's own
    # has; not Mistral's own, where that is installed: it takes no special tokens from a text.
    "mistral3": {"mistral_format": False, "fix_mistral_regex": True},
}


@dataclass(frozen=True)
class StockModel:
    """A model with what prepares its input."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor


_LOADING = Lock()
"""Transformers sets torch's precision for the whole process while it makes a model: of two at once,
one may have holes, and the process be left with the precision of the other."""
_OWN_CODE = {"trust_remote_code": False}
"""Code that comes with a model's files is never run: transformers would ask, and wait."""


def stock_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """A model's configuration; see ``load_stock_model``.

    Raises:
        ModelError: if it names code of the hub for its attention.
    """
    config = AutoConfig.from_pretrained(source, revision=revision, **_OWN_CODE)
    kernel = config._attn_implementation  # of the whole model: transformers reads it nowhere else
    if kernel is not None and "/" in kernel:
        raise ModelError(
            f"model {source!r} asks for attention code from the hub ({kernel}), which is not run: "
            "take attn_implementation out of its config.json"
        )
    return config


def load_stock_model(
    source: str,
    revision: str | None,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    device_map: DeviceMap | None = None,
) -> StockModel:
    """Load a model from the hub or a directory.

    Errors of transformers and the hub pass through. Call this within ``hub.explained``, which turns
    them into a ``ModelError`` about the revision that the user named, often not the one given here.

    Args:
        source: hub id or directory.
        revision: branch, tag or commit; None is ``main``.
        dtype: precision of the weights; ``auto`` keeps the one that they are stored in.
        device_map: spreads the model over several devices; None leaves it on the CPU.

    Raises:
        ModelError: if weights are missing or of another shape, or the token embedding is not in
            memory; says what to do.
    """
    at = {"revision": revision, **_OWN_CODE}
    kind = stock_config(source, revision).model_type
    tokenizer = _tokenizer(source, revision, kind)
    image_processor = _image_processor(source, revision, kind)
    with _LOADING:
        model, report = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            # Judged below, with a message that says more.
            ignore_mismatched_sizes=True,
            **at,
        )
    _check_generation_settings(source, revision, model)
    _check_weights(source, report)
    _check_placement(source, model)
    return StockModel(model, tokenizer, image_processor)


def _tokenizer(source: str, revision: str | None, kind: str) -> PreTrainedTokenizerBase:
    """With the settings of its family.

    One with settings is loaded from the hub to have its files, and again from their folder: by its
    name on the hub, transformers splits words as told only if the hub answers just then, and says
    that the model was made from one of Mistral's own.
    """
    settings = _TOKENIZER_SETTINGS.get(kind, {})
    found: PreTrainedTokenizerBase
    found = AutoTokenizer.from_pretrained(source, revision=revision, **_OWN_CODE, **settings)
    folder = local_folder(source, revision)
    if settings and folder is not None and folder != Path(source):
        found = AutoTokenizer.from_pretrained(folder, **_OWN_CODE, **settings)
    return found


def _image_processor(source: str, revision: str | None, kind: str) -> BaseImageProcessor:
    """The one of Pillow; of what transformers has for torchvision alone, its nearest relative."""
    if kind in _RELATIVES:
        return _RELATIVES[kind].from_pretrained(source, revision=revision)
    return AutoImageProcessor.from_pretrained(source, backend="pil", revision=revision, **_OWN_CODE)


def _check_generation_settings(source: str, revision: str | None, model: PreTrainedModel) -> None:
    """Refuse what answers would silently go on without: transformers takes its defaults instead.

    Raises:
        ModelError: if the settings name tokens that the model does not have.
        OSError: if their file is there and cannot be read.
    """
    folder = local_folder(source, revision)
    if folder is not None and (folder / GENERATION_CONFIG_NAME).exists():
        GenerationConfig.from_pretrained(folder)
    check_tokens(model.generation_config, model.get_input_embeddings().num_embeddings, source)


def _check_weights(source: str, report: Mapping[str, Any]) -> None:
    """Refuse weights with holes: transformers would fill them with random numbers.

    Raises:
        ModelError: naming the first one.
    """
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(key) for key in report[problem]):
            raise ModelError(
                f"model {source!r}: {len(names)} of its weights are "
                f"{problem.removesuffix('_keys')} (first {names[0]}): the files are incomplete or "
                "belong to another model; download or copy them anew"
            )


def _check_placement(source: str, model: PreTrainedModel) -> None:
    """Refuse a token embedding that is not in memory: every prompt starts there.

    Raises:
        ModelError: if it is on disk.
    """
    if model.get_input_embeddings().weight.is_meta:
        raise ModelError(
            f"model {source!r}: device_map puts the token embedding outside the devices' memory; "
            "map it to a GPU or the CPU, or use more GPUs"
        )

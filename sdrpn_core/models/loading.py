"""Loading a stock model and choosing its adapter by family."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import is_accelerate_available

from data_contracts.configs import Precision
from data_contracts.profiles import ModelProfile
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.deepseek_vl import DeepseekVlAdapter
from sdrpn_core.models.deepseek_vl_hybrid import DeepseekVlHybridAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.hub import explained, local_folder, quiet_transformers
from sdrpn_core.models.internvl import InternVlAdapter
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from sdrpn_core.models.qwen3_vl import Qwen3VlAdapter
from sdrpn_core.models.square import SquareAdapter
from sdrpn_core.reference.model import reference_model_path

log = logging.getLogger(__name__)

DeviceMap = str | Mapping[str, int | str]
"""Module -> device, or a rule for making such a map."""

FAMILIES: dict[str, type[SquareAdapter] | type[Qwen2_5VlAdapter]] = {
    "deepseek_vl": DeepseekVlAdapter,
    "deepseek_vl_hybrid": DeepseekVlHybridAdapter,
    "internvl": InternVlAdapter,
    "llava": LlavaAdapter,
    "qwen2_vl": Qwen2_5VlAdapter,
    "qwen2_5_vl": Qwen2_5VlAdapter,
    "qwen3_vl": Qwen3VlAdapter,
}
"""Adapter by family; a family is named as its models' type in transformers."""
REFERENCE = "reference"
DTYPES: tuple[str, ...] = get_args(Precision)
_CHOICE = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_source(model_id: str) -> str:
    """Where a profile's model is loaded from: a hub id, or a directory."""
    return str(reference_model_path()) if model_id == REFERENCE else model_id


def resolve_device(device: str) -> torch.device:
    """``auto`` takes the first CUDA device where there is one, else the CPU.

    Raises:
        ModelError: if there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"device {device!r} cannot be used ({reason}): choose auto, cpu, or cuda:N of a GPU "
            "that `nvidia-smi` lists"
        ) from error
    return torch.device(device)


def answering_dtype(trained: str, device: torch.device) -> str:
    """Precision to answer in where the user names none: the RPN's own on a GPU, else float32.

    Args:
        trained: precision of the RPN's weights, which is that of the model it was trained beside.
        device: where the model will run.
    """
    return trained if device.type == "cuda" else "float32"


def resolve_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        ModelError: if models do not run in it.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not known: choose {_CHOICE}")
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def is_commit(revision: str | None) -> bool:
    """Whether a revision names a commit, which no push to the hub moves."""
    return _COMMIT.fullmatch(revision or "") is not None


def load_adapter(
    profile: ModelProfile,
    *,
    device: str = "auto",
    dtype: str = "float32",
    device_map: DeviceMap | None = None,
) -> ModelAdapter:
    """Load a model with its tokenizer and image processor, frozen and ready.

    A model of the hub keeps the commit it was loaded at: the adapter's profile names it, and with
    it every RPN trained beside the model.

    Args:
        profile: what to load; ``model_id`` is a hub id, a directory or ``reference``.
        device: torch device, or ``auto``.
        dtype: one of ``DTYPES``.
        device_map: spreads the model over several devices instead of putting it on ``device``.

    Raises:
        ModelError: if the family, device or dtype is unknown, or the weights cannot be had; says
            what to do.
    """
    if profile.family not in FAMILIES:
        raise ModelError(
            f"profile {profile.name!r}: unknown family {profile.family!r}; "
            f"known are {', '.join(FAMILIES)}"
        )
    if device_map is not None and not is_accelerate_available():
        raise ModelError(
            "device_map needs the package accelerate: run `pip install 'sdrpn[multi-gpu]'`, or "
            "remove device_map from the runtime settings"
        )
    precision = resolve_dtype(dtype)
    target = resolve_device(device) if device_map is None else None
    source = model_source(profile.model_id)
    with quiet_transformers(), explained(source, profile.revision):
        profile = _pinned(profile, source)
        at = {"revision": profile.revision}
        tokenizer = AutoTokenizer.from_pretrained(source, **at)
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **at)
        model, report = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=precision,
            device_map=device_map,
            output_loading_info=True,
            # Judged below, with a message that says more.
            ignore_mismatched_sizes=True,
            **at,
        )
        check_weights(source, report)
        if target is not None:
            model = model.to(target)
        _check_placement(source, model)
    log.info("loaded %s at %s in %s", profile.model_id, profile.revision or source, dtype)
    return FAMILIES[profile.family](model, tokenizer, profile, image_processor)


def pinned_profile(profile: ModelProfile) -> ModelProfile:
    """The profile with the commit that its revision stands for, without loading the model.

    Raises:
        ModelError: if the model cannot be had or is of another family.
    """
    source = model_source(profile.model_id)
    if Path(source).is_dir() or is_commit(profile.revision):
        return profile
    with quiet_transformers(), explained(source, profile.revision):
        return _pinned(profile, source)


def _pinned(profile: ModelProfile, source: str) -> ModelProfile:
    """The profile with the commit that its revision stands for; checks the family on the way."""
    config = AutoConfig.from_pretrained(source, revision=profile.revision)
    if config.model_type != profile.family:
        raise ModelError(
            f"profile {profile.name!r} is for models of family {profile.family!r}, {source!r} is "
            f"of family {config.model_type!r}: choose its own profile"
        )
    folder = local_folder(source, profile.revision)
    if Path(source).is_dir() or folder is None:
        return profile
    if profile.revision is None:
        log.warning(
            "%s is loaded without a pinned revision; to keep these weights, set in profile %s: "
            "revision: %s",
            source,
            profile.name,
            folder.name,
        )
    return profile.model_copy(update={"revision": folder.name})


def check_weights(source: str, report: Mapping[str, Any]) -> None:
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
    """Refuse a token embedding that is not in memory: every prompt starts there."""
    if model.get_input_embeddings().weight.is_meta:
        raise ModelError(
            f"model {source!r}: device_map puts the token embedding outside the devices' memory; "
            "map it to a GPU or the CPU, or use more GPUs"
        )

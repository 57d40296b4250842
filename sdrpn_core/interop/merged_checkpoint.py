"""A stock model and an RPN -> one full-model checkpoint, named as the authors name theirs.

What the RPN leaves out (the rest of its last layer; the norm where a family does not use it) is
filled with the model's own weights, as it is in the authors' checkpoints, where nothing trains it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from data_contracts.errors import SdrpnError
from data_contracts.profiles import ModelProfile
from sdrpn_core.interop import naming
from sdrpn_core.interop.naming import PublishedFamily
from sdrpn_core.interop.tensor_folder import CONFIG, INDEX, SINGLE
from sdrpn_core.models.devices import dtype_name
from sdrpn_core.models.profile_checks import size_mismatch
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.config import RpnConfig

_TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings"),
    *("initializer_range", "rms_norm_eps", "attention_bias", "attention_dropout", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "pretraining_tp"),
)
_TOKEN_KEYS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_LLAVA = {
    "image_aspect_ratio": "pad",
    "mm_patch_merge_type": "flat",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "use_mm_proj": True,
}
_RPN = {
    "enable_twig": True,
    "roi_branch": True,
    "roi_loss": "bce",
    "roi_multi_head": True,
    "roi_source": "qk",
}


class MergeError(SdrpnError):
    """A model and an RPN cannot be merged; the message says why."""


@dataclass(frozen=True)
class MergedCheckpoint:
    """A full model with its RPN, under published names."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    rpn_config: RpnConfig
    """Kept beside the rest, so that importing the checkpoint loses nothing."""

    def files(self, max_shard_bytes: int) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each file; the configuration and the index come last."""
        shards = _shards(self.tensors, max_shard_bytes)
        names = _shard_names(len(shards))
        for name, shard in zip(names, shards, strict=True):
            yield name, save(shard, metadata={"format": "pt"})
        yield naming.RPN_CONFIG, (self.rpn_config.model_dump_json(indent=2) + "\n").encode()
        yield CONFIG, _json(self.config)
        if len(shards) > 1:
            located = {t: name for name, shard in zip(names, shards, strict=True) for t in shard}
            total = sum(tensor.nbytes for tensor in self.tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(located.items()))}
            yield INDEX, _json(index)


def merge(model: PreTrainedModel, rpn: RpnCheckpoint) -> MergedCheckpoint:
    """Put an RPN into its model.

    Args:
        model: the stock model that the RPN was trained beside, on the CPU.
        rpn: the RPN; its tensors keep their precision.

    Raises:
        MergeError: if the family has no published naming, or the two do not fit each other.
    """
    profile = rpn.config.profile
    family = next((f for f in naming.FAMILIES if f.family == profile.family), None)
    if family is None:
        known = ", ".join(f.family for f in naming.FAMILIES)
        raise MergeError(
            f"the authors published no checkpoint of family {profile.family!r}, only {known}; "
            "share the RPN's own folder instead"
        )
    _check_model(model, profile)
    base = _base_tensors(model, family)
    tensors = base | _rpn_tensors(base, rpn)
    return MergedCheckpoint(tensors, _config(model, rpn, family), rpn.config)


def _check_model(model: PreTrainedModel, profile: ModelProfile) -> None:
    mismatch = size_mismatch(profile, model.config.get_text_config(decoder=True))
    if mismatch is not None:
        raise MergeError(f"the RPN {mismatch}: give the model it was trained for")


def _base_tensors(model: PreTrainedModel, family: PublishedFamily) -> dict[str, Tensor]:
    """The model's tensors under published names."""
    tied = _has_tied_head(model)
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        published = naming.published_base_name(name, family)
        if published is None:
            raise MergeError(
                f"the model has {name}, which the authors' {family.family} checkpoints have not: "
                "share the RPN's own folder instead"
            )
        if not (tied and name.startswith("lm_head.")):
            found[published] = tensor.detach().contiguous()
    # The authors' class has a head of its own for the branch, a copy that nothing trains.
    head = model.get_output_embeddings().weight
    return found | {"twig_head.weight": head.detach().clone()}


def _has_tied_head(model: PreTrainedModel) -> bool:
    """Whether output and input embeddings are one tensor, whatever the configuration says."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return bool(head.weight.data_ptr() == embedding.weight.data_ptr())


def _rpn_tensors(base: Mapping[str, Tensor], rpn: RpnCheckpoint) -> dict[str, Tensor]:
    """The RPN's tensors under published names, what it leaves out filled from the model."""
    shape = rpn.config.shape
    start = naming.TEXT_PREFIX
    merged = {f"{start}{naming.FINAL_NORM}": base[f"{start}norm.weight"].clone()}
    for layer in range(shape.depth):
        origin = f"{start}layers.{shape.branch_layer + layer}."
        for name, tensor in base.items():
            if name.startswith(origin):
                rest = name.removeprefix(origin)
                merged[f"{start}twig_layers.{layer}.{rest}"] = tensor.clone()
    for name, tensor in rpn.state.items():
        try:
            published = f"{start}{naming.published_name(name, shape.depth)}"
        except KeyError:
            published = ""
        if published not in merged or merged[published].shape != tensor.shape:
            raise MergeError(
                f"the RPN's {name} {tuple(tensor.shape)} has no counterpart in the model: "
                "give the model it was trained for"
            )
        merged[published] = tensor.contiguous()
    return merged


def _config(model: PreTrainedModel, rpn: RpnCheckpoint, family: PublishedFamily) -> dict[str, Any]:
    """``config.json`` as the authors' classes read it: the text model's settings at top level."""
    whole = model.config.to_dict()
    text = model.config.get_text_config(decoder=True).to_dict()
    rope = text.get("rope_parameters") or {}
    shape = rpn.config.shape
    is_lazy = family.uses_final_norm and not shape.final_norm
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "torch_dtype": dtype_name(model.dtype),
        **{key: text[key] for key in _TEXT_KEYS if key in text},
        "tie_word_embeddings": _has_tied_head(model),
        "rope_theta": rope.get("rope_theta"),
        "rope_scaling": _rope_scaling(rope),
        **_RPN,
        "roi_super_type": "lazy" if is_lazy else "v1",
        "twig_K": shape.branch_layer,
        "twig_T": shape.depth,
    }
    if family is naming.LLAVA:
        config |= _LLAVA
        config["mm_hidden_size"] = whole["vision_config"]["hidden_size"]
        config["mm_vision_select_layer"] = whole["vision_feature_layer"]
    else:
        config["vision_config"] = whole["vision_config"]
        config |= {key: whole[key] for key in _TOKEN_KEYS if key in whole}
    return config


def _rope_scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    if "mrope_section" in rope:
        return {"type": "mrope", "mrope_section": rope["mrope_section"]}
    if rope.get("rope_type", "default") == "default":
        return None
    return {key: value for key, value in rope.items() if key != "rope_theta"}


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors in order, cut where the next one would not fit; a larger one is a shard by itself."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

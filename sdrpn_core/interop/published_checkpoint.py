"""The RPN of an authors' full-model checkpoint -> our RPN checkpoint.

Reads the configuration and the RPN's tensors alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data_contracts.interop import ImportedFrom
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile, RpnShape
from sdrpn_core.interop import naming
from sdrpn_core.interop.published_layout import PublishedRpn, find_branch_layer, locate_rpn, refusal
from sdrpn_core.interop.tensor_folder import CONFIG, TensorFolder
from sdrpn_core.models.devices import dtype_name
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.config import FORMAT_VERSION, RpnConfig, read_config
from sdrpn_core.rpn.parameters import weights_problem

_WEIGHTS = (
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)
_OPTIONAL = tuple(f"self_attn.{name}_proj.bias" for name in "qkvo")
_BUFFERS = ("self_attn.rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Overrides:
    """What the user knows better than the checkpoint; None takes what is found."""

    profile: ModelProfile | None = None
    branch_layer: int | None = None
    threshold: float | None = None
    regions: RegionSettings | None = None


def read_published_rpn(
    path: Path, profiles: Sequence[ModelProfile], overrides: Overrides
) -> RpnCheckpoint:
    """Extract the RPN of a full-model checkpoint, the authors' or one that we exported.

    Args:
        path: folder with ``config.json`` and safetensors, in one file or in shards with an index.
        profiles: known models, one of which must fit unless ``overrides`` names one.
        overrides: what the user says.

    Raises:
        ForeignCheckpointError: if it holds no RPN, or one that does not fit; says what to do.
    """
    found = locate_rpn(TensorFolder(path))
    branch_layer, source = find_branch_layer(found, overrides.branch_layer)
    ours = _own_config(found.folder)
    known = overrides.profile or (ours.profile if ours else None)
    profile = _profile(found, profiles, known)
    if known is None and found.family.prompt is not None:
        profile = profile.model_copy(update={"prompt": found.family.prompt})
    _check_room(found, branch_layer, profile)
    shape = RpnShape(
        branch_layer=branch_layer,
        depth=found.depth,
        # Trained on the data set's own answers ("lazy"), LLaVA's RPN scores without the norm.
        final_norm=found.family.uses_final_norm and found.config.get("roi_super_type") != "lazy",
        rotary_scores=found.family.rotary_scores,
    )
    state = _read_state(found, shape)
    if ours is not None and ours.shape == shape:
        return RpnCheckpoint(_overridden(ours, overrides), state)
    threshold = overrides.threshold
    return RpnCheckpoint(
        RpnConfig(
            format_version=FORMAT_VERSION,
            profile=profile.model_copy(update={"rpn": shape}),
            shape=shape,
            dtype=dtype_name(state["scoring.q_proj.weight"].dtype),
            threshold=found.family.threshold if threshold is None else threshold,
            regions=overrides.regions or RegionSettings.preset(found.family.regions),
            imported=ImportedFrom(
                checkpoint=path.resolve().name,
                architecture=found.family.architecture,
                branch_layer_source=source,
            ),
        ),
        state,
    )


def _own_config(folder: TensorFolder) -> RpnConfig | None:
    """What ``sdrpn export`` wrote beside the weights."""
    data = folder.extra_file(naming.RPN_CONFIG)
    return None if data is None else read_config(data, str(folder.path / naming.RPN_CONFIG))


def _overridden(ours: RpnConfig, overrides: Overrides) -> RpnConfig:
    """Our own configuration with what the user knows better; all else stays, calibration too."""
    changes: dict[str, Any] = {}
    if overrides.profile is not None:
        changes["profile"] = overrides.profile.model_copy(update={"rpn": ours.shape})
    if overrides.threshold is not None:
        changes["threshold"] = overrides.threshold
    if overrides.regions is not None:
        changes["regions"] = overrides.regions
    return ours.model_copy(update=changes)


def _profile(
    found: PublishedRpn, profiles: Sequence[ModelProfile], given: ModelProfile | None
) -> ModelProfile:
    layers, heads = found.size("num_hidden_layers"), found.size("num_attention_heads")
    wanted = (found.family.family, layers, heads)
    described = f"a {wanted[0]} model of {layers} layers x {heads} heads"
    if given is not None:
        if (given.family, given.num_layers, given.num_heads) != wanted:
            raise refusal(
                found.folder,
                f"is of {described}, profile {given.name!r} of a {given.family} model of "
                f"{given.num_layers} x {given.num_heads}: give the profile of its model",
            )
        return given
    fitting = [p for p in profiles if (p.family, p.num_layers, p.num_heads) == wanted]
    if len(fitting) != 1:
        names = ", ".join(p.name for p in fitting) or "none"
        raise refusal(
            found.folder, f"is of {described}, packaged profiles that fit: {names}; give --profile"
        )
    return fitting[0]


def _check_room(found: PublishedRpn, branch_layer: int, profile: ModelProfile) -> None:
    if branch_layer < 1 or branch_layer + found.depth > profile.num_layers:
        raise refusal(
            found.folder,
            f"an RPN of layers {branch_layer} to {branch_layer + found.depth - 1} does not fit "
            f"into a model of {profile.num_layers} layers: give the right --branch-layer",
        )


def _read_state(found: PublishedRpn, shape: RpnShape) -> dict[str, Tensor]:
    """The RPN's tensors under our names."""
    wanted: dict[str, str] = {}
    for index, layer in sorted(found.layers.items()):
        _check_layer(found, index, layer)
        for rest, name in layer.items():
            ours = None if rest in _BUFFERS else naming.rpn_name(index, rest, found.depth)
            if ours is not None:
                wanted[name] = ours
    if shape.final_norm:
        norm = f"{found.prefix}{naming.FINAL_NORM}"
        if norm not in found.folder.names:
            raise refusal(found.folder, f"has no {norm}; download it again")
        wanted[norm] = "scoring.final_norm.weight"
    tensors = found.folder.read(wanted)
    _check_weights(found, tensors)
    return {ours: tensors[name] for name, ours in wanted.items()}


def _check_layer(found: PublishedRpn, index: int, layer: Mapping[str, str]) -> None:
    where = f"{found.prefix}twig_layers.{index}"
    if missing := [rest for rest in _WEIGHTS if rest not in layer]:
        raise refusal(found.folder, f"has no {where}.{missing[0]}; download it again")
    if unknown := sorted(layer.keys() - {*_WEIGHTS, *_OPTIONAL, *_BUFFERS}):
        raise refusal(found.folder, f"has {where}.{unknown[0]}, which no known family has")


def _check_weights(found: PublishedRpn, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor must be of the size that the configuration says, and be weights."""
    width = found.size("hidden_size")
    inner = found.size("intermediate_size")
    num_heads = found.size("num_attention_heads")
    head_width = width // num_heads
    num_keys = found.size("num_key_value_heads", num_heads)
    sizes = {
        "q_proj": (width, width),
        "k_proj": (num_keys * head_width, width),
        "v_proj": (num_keys * head_width, width),
        "o_proj": (width, width),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }
    for name, tensor in tensors.items():
        module, parameter = name.split(".")[-2:]
        wanted = sizes.get(module, (width,))
        wanted = wanted[:1] if parameter == "bias" else wanted
        if tuple(tensor.shape) != wanted:
            raise refusal(
                found.folder,
                f"{name} is {tuple(tensor.shape)}, {CONFIG} asks for {wanted}; download both again",
            )
        if (problem := weights_problem(tensor)) is not None:
            raise refusal(found.folder, f"{name} {problem}; give the checkpoint as published")

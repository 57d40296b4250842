"""The RPN of an authors' full-model checkpoint -> our RPN checkpoint.

Reads the configuration and the RPN's tensors alone. Where ``config.json`` does not say which layer
the RPN branches off, the last RPN layer tells: nothing trains its value projection, so it still
equals that of the layer it was copied from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_contracts.interop import ImportedFrom
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile, RpnShape
from sdrpn_core.interop import naming
from sdrpn_core.interop.naming import PublishedFamily
from sdrpn_core.interop.tensor_folder import CONFIG, ForeignCheckpointError, TensorFolder
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.config import FORMAT_VERSION, RpnConfig, read_config
from sdrpn_core.rpn.parameters import torch_dtype_name

_NUM_ROWS_COMPARED = 16
_UNTRAINED = "self_attn.v_proj.weight"

_WEIGHTS = (
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)
_OPTIONAL = tuple(f"self_attn.{name}_proj.bias" for name in "qkvo")
_BUFFERS = ("self_attn.rotary_emb.inv_freq",)

# Variants of the authors' training code that score otherwise than the published networks do.
_SUPPORTED = {"roi_source": "qk", "roi_multi_head": True}


@dataclass(frozen=True)
class Overrides:
    """What the user knows better than the checkpoint; None takes what is found."""

    profile: ModelProfile | None = None
    branch_layer: int | None = None
    threshold: float | None = None
    regions: RegionSettings | None = None


@dataclass(frozen=True)
class _Found:
    """An RPN located in a folder."""

    folder: TensorFolder
    config: Mapping[str, Any]
    family: PublishedFamily
    layers: dict[int, dict[str, str]]
    """RPN layer -> tensor name within it -> name in the folder."""
    prefix: str

    @property
    def depth(self) -> int:
        return len(self.layers)

    def size(self, key: str, default: int | None = None) -> int:
        """A dimension of the text model."""
        text = self.config.get("text_config")
        nested = text.get(key) if isinstance(text, dict) else None
        value = self.config.get(key, nested) or default
        if not isinstance(value, int):
            raise _wrong(self.folder, f"{CONFIG} has no {key}; download it again")
        return value


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
    found = _locate(TensorFolder(path))
    branch_layer, source = _branch_layer(found, overrides.branch_layer)
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
            dtype=torch_dtype_name(state["scoring.q_proj.weight"].dtype),
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


def _locate(folder: TensorFolder) -> _Found:
    config = folder.config()
    layers: dict[int, dict[str, str]] = {}
    prefixes = set()
    for name in folder.names:
        if matched := naming.LAYER.fullmatch(name):
            layers.setdefault(int(matched["index"]), {})[matched["rest"]] = name
            prefixes.add(matched["prefix"])
    if not layers:
        raise _wrong(
            folder,
            "holds no model.twig_layers.*: not a checkpoint of SD-RPN; "
            "give the folder of one of the authors' full models",
        )
    if sorted(layers) != list(range(len(layers))) or len(prefixes) > 1:
        raise _wrong(folder, f"has twig_layers {sorted(layers)}, not 0 to R-1; download it again")
    if config.get("twig_T", len(layers)) != len(layers):
        raise _wrong(
            folder,
            f"{CONFIG} says twig_T = {config['twig_T']}, but there are {len(layers)} twig_layers; "
            "download both again",
        )
    found = _Found(folder, config, _family(folder, config), layers, prefixes.pop())
    _check_variant(found)
    return found


def _family(folder: TensorFolder, config: Mapping[str, Any]) -> PublishedFamily:
    model_type = config.get("model_type")
    for family in naming.FAMILIES:
        if model_type in (family.model_type, family.family):
            return family
    known = ", ".join(family.model_type for family in naming.FAMILIES)
    raise _wrong(folder, f"{CONFIG} names model_type {model_type!r}; known are {known}")


def _check_variant(found: _Found) -> None:
    for key, supported in _SUPPORTED.items():
        value = found.config.get(key, supported)
        if value != supported:
            raise _wrong(
                found.folder, f"{CONFIG} has {key} = {value!r}; only {supported!r} can be imported"
            )
    if found.config.get("roi_loss") == "mse":
        raise _wrong(
            found.folder, f"{CONFIG} has roi_loss = 'mse', whose logits mean something else"
        )


def _branch_layer(found: _Found, wanted: int | None) -> tuple[int, str]:
    """B, and how it was found."""
    stated = found.config.get("twig_K")
    if isinstance(stated, int):
        if wanted not in (None, stated):
            raise _wrong(
                found.folder,
                f"{CONFIG} says twig_K = {stated}, not {wanted}; leave --branch-layer out",
            )
        return stated, "twig_K of config.json"
    if wanted is not None:
        return wanted, "given by hand"
    layers = _base_layers(found)
    origins = _origins(found, layers)
    if len(origins) == 1:
        return origins[0] - found.depth + 1, "equal weights of the last layer"
    if 0 < len(layers) < found.size("num_hidden_layers"):
        # Training cuts the model off behind the layers that the RPN was copied from.
        return len(layers) - found.depth, "number of layers that were kept"
    raise _wrong(
        found.folder, f"{CONFIG} has no twig_K, and the weights do not tell: give --branch-layer"
    )


def _base_layers(found: _Found) -> list[int]:
    """Decoder layers of the base model that the folder holds."""
    start, end = f"{found.prefix}layers.", f".{_UNTRAINED}"
    names = [n for n in found.folder.names if n.startswith(start) and n.endswith(end)]
    return sorted(int(name.removeprefix(start).removesuffix(end)) for name in names)


def _origins(found: _Found, layers: Sequence[int]) -> list[int]:
    """Base layers that the last RPN layer may be a copy of."""
    name = found.layers[found.depth - 1].get(_UNTRAINED)
    if name is None:
        return []
    ours = found.folder.head(name, _NUM_ROWS_COMPARED)

    def is_equal(layer: int) -> bool:
        theirs = f"{found.prefix}layers.{layer}.{_UNTRAINED}"
        return torch.equal(found.folder.head(theirs, _NUM_ROWS_COMPARED), ours)

    return [layer for layer in layers if is_equal(layer)]


def _profile(
    found: _Found, profiles: Sequence[ModelProfile], given: ModelProfile | None
) -> ModelProfile:
    layers, heads = found.size("num_hidden_layers"), found.size("num_attention_heads")
    wanted = (found.family.family, layers, heads)
    described = f"a {wanted[0]} model of {layers} layers x {heads} heads"
    if given is not None:
        if (given.family, given.num_layers, given.num_heads) != wanted:
            raise _wrong(
                found.folder,
                f"is of {described}, profile {given.name!r} of a {given.family} model of "
                f"{given.num_layers} x {given.num_heads}: give the profile of its model",
            )
        return given
    fitting = [p for p in profiles if (p.family, p.num_layers, p.num_heads) == wanted]
    if len(fitting) != 1:
        names = ", ".join(p.name for p in fitting) or "none"
        raise _wrong(
            found.folder, f"is of {described}, packaged profiles that fit: {names}; give --profile"
        )
    return fitting[0]


def _check_room(found: _Found, branch_layer: int, profile: ModelProfile) -> None:
    if branch_layer < 1 or branch_layer + found.depth > profile.num_layers:
        raise _wrong(
            found.folder,
            f"an RPN of layers {branch_layer} to {branch_layer + found.depth - 1} does not fit "
            f"into a model of {profile.num_layers} layers: give the right --branch-layer",
        )


def _read_state(found: _Found, shape: RpnShape) -> dict[str, Tensor]:
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
            raise _wrong(found.folder, f"has no {norm}; download it again")
        wanted[norm] = "scoring.final_norm.weight"
    tensors = found.folder.read(wanted)
    _check_shapes(found, tensors)
    return {ours: tensors[name] for name, ours in wanted.items()}


def _check_layer(found: _Found, index: int, layer: Mapping[str, str]) -> None:
    where = f"{found.prefix}twig_layers.{index}"
    if missing := [rest for rest in _WEIGHTS if rest not in layer]:
        raise _wrong(found.folder, f"has no {where}.{missing[0]}; download it again")
    if unknown := sorted(layer.keys() - {*_WEIGHTS, *_OPTIONAL, *_BUFFERS}):
        raise _wrong(found.folder, f"has {where}.{unknown[0]}, which no known family has")


def _check_shapes(found: _Found, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor must be of the size that the configuration says."""
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
            raise _wrong(
                found.folder,
                f"{name} is {tuple(tensor.shape)}, {CONFIG} asks for {wanted}; download both again",
            )


def _wrong(folder: TensorFolder, problem: str) -> ForeignCheckpointError:
    return ForeignCheckpointError(f"{folder.path}: {problem}")

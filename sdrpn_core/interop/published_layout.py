"""Where the RPN lies in an authors' full-model checkpoint, of which family, where it branches off.

Where ``config.json`` does not say which layer that is, the last RPN layer tells: nothing trains its
value projection, so it still equals that of the layer it was copied from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdrpn_core.interop import naming
from sdrpn_core.interop.naming import PublishedFamily
from sdrpn_core.interop.tensor_folder import CONFIG, ForeignCheckpointError, TensorFolder
from sdrpn_core.rpn.parameters import weights_problem

_NUM_ROWS_COMPARED = 16
_UNTRAINED = "self_attn.v_proj.weight"

# Variants of the authors' training code that score otherwise than the published networks do.
_SUPPORTED = {"roi_source": "qk", "roi_multi_head": True}


@dataclass(frozen=True)
class PublishedRpn:
    """An RPN located in a folder."""

    folder: TensorFolder
    config: Mapping[str, Any]
    family: PublishedFamily
    layers: dict[int, dict[str, str]]
    """RPN layer -> tensor name within it -> name in the folder."""
    prefix: str

    @property
    def depth(self) -> int:
        """R: its number of layers."""
        return len(self.layers)

    def size(self, key: str, default: int | None = None) -> int:
        """A dimension of the text model.

        Raises:
            ForeignCheckpointError: if the configuration does not say.
        """
        text = self.config.get("text_config")
        nested = text.get(key) if isinstance(text, dict) else None
        value = self.config.get(key, nested) or default
        if not isinstance(value, int):
            raise refusal(self.folder, f"{CONFIG} has no {key}; download it again")
        return value


def locate_rpn(folder: TensorFolder) -> PublishedRpn:
    """Find the RPN among a folder's tensors.

    Raises:
        ForeignCheckpointError: if there is none, not all of it, or one of a kind that is not known.
    """
    config = folder.config()
    layers: dict[int, dict[str, str]] = {}
    prefixes = set()
    for name in folder.names:
        if matched := naming.LAYER.fullmatch(name):
            layers.setdefault(int(matched["index"]), {})[matched["rest"]] = name
            prefixes.add(matched["prefix"])
    if not layers:
        raise refusal(
            folder,
            "holds no model.twig_layers.*: not a checkpoint of SD-RPN; "
            "give the folder of one of the authors' full models",
        )
    if sorted(layers) != list(range(len(layers))) or len(prefixes) > 1:
        raise refusal(folder, f"has twig_layers {sorted(layers)}, not 0 to R-1; download it again")
    if config.get("twig_T", len(layers)) != len(layers):
        raise refusal(
            folder,
            f"{CONFIG} says twig_T = {config['twig_T']}, but there are {len(layers)} twig_layers; "
            "download both again",
        )
    found = PublishedRpn(folder, config, _family(folder, config), layers, prefixes.pop())
    _check_variant(found)
    return found


def _family(folder: TensorFolder, config: Mapping[str, Any]) -> PublishedFamily:
    model_type = config.get("model_type")
    for family in naming.FAMILIES:
        if model_type in (family.model_type, family.family):
            return family
    known = ", ".join(family.model_type for family in naming.FAMILIES)
    raise refusal(folder, f"{CONFIG} names model_type {model_type!r}; known are {known}")


def _check_variant(found: PublishedRpn) -> None:
    for key, supported in _SUPPORTED.items():
        value = found.config.get(key, supported)
        if value != supported:
            raise refusal(
                found.folder, f"{CONFIG} has {key} = {value!r}; only {supported!r} can be imported"
            )
    if found.config.get("roi_loss") == "mse":
        raise refusal(
            found.folder, f"{CONFIG} has roi_loss = 'mse', whose logits mean something else"
        )


def find_branch_layer(found: PublishedRpn, wanted: int | None) -> tuple[int, str]:
    """B, and how it was found.

    Args:
        found: the RPN.
        wanted: what the user says; None where nothing was said.

    Raises:
        ForeignCheckpointError: if nothing tells, or the user says otherwise than ``config.json``.
    """
    stated = found.config.get("twig_K")
    if isinstance(stated, int):
        if wanted not in (None, stated):
            raise refusal(
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
    raise refusal(
        found.folder, f"{CONFIG} has no twig_K, and the weights do not tell: give --branch-layer"
    )


def _base_layers(found: PublishedRpn) -> list[int]:
    """Decoder layers of the base model that the folder holds."""
    matches = map(naming.BASE_LAYER.fullmatch, found.folder.names)
    wanted = (found.prefix, _UNTRAINED)
    return sorted(int(m["index"]) for m in matches if m and (m["prefix"], m["rest"]) == wanted)


def _origins(found: PublishedRpn, layers: Sequence[int]) -> list[int]:
    """Base layers that the last RPN layer may be a copy of."""
    name = found.layers[found.depth - 1].get(_UNTRAINED)
    if name is None:
        return []
    ours = found.folder.head(name, _NUM_ROWS_COMPARED)
    if weights_problem(ours) is not None:
        return []

    def is_equal(layer: int) -> bool:
        theirs = f"{found.prefix}layers.{layer}.{_UNTRAINED}"
        rows = found.folder.head(theirs, _NUM_ROWS_COMPARED)
        return weights_problem(rows) is None and torch.equal(rows, ours)

    return [layer for layer in layers if is_equal(layer)]


def refusal(folder: TensorFolder, problem: str) -> ForeignCheckpointError:
    """What to raise; names the folder."""
    return ForeignCheckpointError(f"{folder.path}: {problem}")

"""Whether a profile fits the model that it is given for."""

from transformers import PreTrainedConfig

from data_contracts.profiles import ModelProfile
from data_contracts.sink_rules import SinkDimensions
from sdrpn_core.models.errors import ModelError


def check_profile(
    profile: ModelProfile, config: PreTrainedConfig, num_deepstack_layers: int
) -> None:
    """Refuse a profile of another model.

    Args:
        profile: what is said of the model.
        config: that of its decoder.
        num_deepstack_layers: K, its first layers, after which image features are added once more.

    Raises:
        ModelError: naming what differs.
    """
    mismatch = size_mismatch(profile, config)
    if mismatch is not None:
        raise ModelError(f"profile {profile.name!r} {mismatch}: choose its own profile")
    check_branch(profile, profile.rpn.branch_layer, num_deepstack_layers)
    hidden_size = config.hidden_size
    for kind, selection in profile.heads.items():
        for signal in selection.hidden_signals:
            if isinstance(signal, SinkDimensions) and max(signal.dimensions) >= hidden_size:
                raise ModelError(
                    f"profile {profile.name!r}: sink dimensions {signal.dimensions} of "
                    f"{kind.value} questions, the model has {hidden_size} dimensions"
                )


def size_mismatch(profile: ModelProfile, config: PreTrainedConfig) -> str | None:
    """How a model's layers and heads differ from those of a profile.

    Args:
        profile: what is said of the model.
        config: that of its decoder.

    Returns:
        The part of an error message that follows the name of what does not fit; None where the two
        agree.
    """
    found = (config.num_hidden_layers, config.num_attention_heads)
    wanted = (profile.num_layers, profile.num_heads)
    if found == wanted:
        return None
    return f"is for {wanted[0]} layers x {wanted[1]} heads, the model has {found[0]} x {found[1]}"


def check_branch(profile: ModelProfile, branch_layer: int, num_deepstack_layers: int) -> None:
    """Refuse a branch inside the layers that still take in image features.

    The RPN copies plain layers, and the second stage enters at the branch: both would miss the
    features that are added there.

    Raises:
        ModelError: if layer B is one of the first K.
    """
    if branch_layer < num_deepstack_layers:
        raise ModelError(
            f"profile {profile.name!r} branches off at layer {branch_layer}, but image "
            f"features are added up to layer {num_deepstack_layers - 1} (deepstack): set "
            f"rpn.branch_layer to at least {num_deepstack_layers}"
        )

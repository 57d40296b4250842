"""Whether a profile fits the model that it is given for."""

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_contracts.profiles import ModelProfile, RpnShape
from data_contracts.sink_rules import SinkDimensions
from sdrpn_core.decoding.recurrent_layers import attention_layers
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
    having_heads = attention_layers(config)
    check_shape(profile, profile.rpn, having_heads, num_deepstack_layers)
    hidden_size = config.hidden_size
    for kind, selection in profile.heads.items():
        if without := sorted(selection.captured.keys() - set(having_heads)):
            raise ModelError(
                f"profile {profile.name!r} names heads of layer {without[0]} for {kind.value} "
                f"questions, and only layers {_listed(having_heads)} have any: name those"
            )
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


def check_shape(
    profile: ModelProfile,
    shape: RpnShape,
    having_heads: tuple[int, ...],
    num_deepstack_layers: int,
) -> None:
    """Refuse an RPN that would begin too low in the model, or end in a layer without heads.

    It copies plain layers, and the second stage enters at the branch: both would miss the image
    features that the first layers add. It scores with the query and key of its last layer.

    Args:
        profile: named in the error.
        shape: of the RPN.
        having_heads: the model's layers that have attention heads.
        num_deepstack_layers: K.

    Raises:
        ModelError: saying what would do.
    """
    if shape.branch_layer < num_deepstack_layers:
        raise ModelError(
            f"profile {profile.name!r} branches off at layer {shape.branch_layer}, but image "
            f"features are added up to layer {num_deepstack_layers - 1} (deepstack): set "
            f"rpn.branch_layer to at least {num_deepstack_layers}"
        )
    if shape.last_layer < profile.num_layers and shape.last_layer not in having_heads:
        raise ModelError(
            f"profile {profile.name!r} ends its RPN with layer {shape.last_layer}, which has no "
            f"query and key to score with: set rpn.branch_layer and rpn.depth so that the last of "
            f"its layers is one of {_listed(having_heads)}"
        )


def check_texts(
    profile: ModelProfile, tokenizer: PreTrainedTokenizerBase, image_token_id: int
) -> None:
    """Refuse a profile whose own words hold the image placeholder: questions would be blamed.

    Raises:
        ModelError: naming the key.
    """
    instructions = profile.extraction_instructions.items()
    texts = {
        "prompt": profile.prompt.replace("{images}", " ").replace("{question}", " "),
        "next_turn": profile.next_turn or "",
        **{f"extraction_instructions.{kind}": one.instruction for kind, one in instructions},
    }
    for key, text in texts.items():
        if image_token_id in tokenizer(text, add_special_tokens=False).input_ids:
            raise ModelError(
                f"profile {profile.name!r}: {key} holds the image placeholder, which only "
                f"{{images}} stands for: take {tokenizer.convert_ids_to_tokens(image_token_id)!r} "
                "out of it"
            )


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))

"""A first profile of a model that has none: counts from its configuration, no heads yet.

Everything else comes from the packaged profile of the model, or of one of the same family and
size (a local copy, a fine-tuned model), but for its labels and regions; without one, from what all
models of the family share.
"""

from pathlib import Path

from transformers import PreTrainedConfig

from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import FamilyDefaults, ModelProfile, RpnShape, plain_regions
from data_contracts.settings_files import parse_settings
from sdrpn_core.calibration.branch import nearest
from sdrpn_core.calibration.examples import CalibrationError
from sdrpn_core.decoding.recurrent_layers import attention_layers
from sdrpn_core.models.families import FAMILIES, check_parts, not_driven
from sdrpn_core.models.hub import explained, quiet_transformers
from sdrpn_core.models.loading import model_source
from sdrpn_core.models.profiles import load_profile, named_model, packaged_profiles
from sdrpn_core.models.stock_model import stock_config


def draft_profile(
    model_id: str,
    *,
    name: str | None = None,
    prompt: str | None = None,
    revision: str | None = None,
) -> ModelProfile:
    """Profile that is enough to load a model and to calibrate it; it has no heads.

    Args:
        model_id: hub id, directory, or the name of a packaged profile.
        name: name of the profile; the last part of the id unless given.
        prompt: with ``{images}`` and ``{question}``; that of its profile or family unless given.
        revision: of the hub repository.

    Raises:
        ModelError: if the model's configuration cannot be had, or is of a size of its family that
            cannot be driven.
        CalibrationError: if no adapter drives its family.
        ConfigError: if no profile can have this name or prompt.
    """
    model_id = named_model(model_id)
    source = model_source(model_id)
    with quiet_transformers(), explained(source, revision):
        config = stock_config(source, revision)
    family = str(config.model_type)
    if family not in FAMILIES:
        raise CalibrationError(not_driven(model_id, family))
    check_parts(config, model_id)
    text = config.get_text_config(decoder=True)
    known = _packaged(model_id, (family, text.num_hidden_layers, text.num_attention_heads))
    if known is not None:
        own = known.model_id == model_id
        regions = known.regions if own else plain_regions(known.images)
        # Labels and heads were found for earlier weights, or by others: no start.
        values = {
            **known.model_dump(),
            "name": name or (known.name if own else Path(model_id).name),
            "revision": revision or (known.revision if own else None),
            "prompt": prompt or known.prompt,
            "labels": LabelSettings(),
            "regions": regions,
            "source": f"draft after profile {known.name}: not calibrated",
        }
    else:
        defaults = FAMILIES[family].defaults
        values = {
            "name": name or Path(model_id).name,
            "family": family,
            "revision": revision,
            "num_layers": text.num_hidden_layers,
            "num_heads": text.num_attention_heads,
            "prompt": prompt or defaults.prompt,
            "images": defaults.images,
            "rpn": _first_shape(model_id, text, defaults),
            "training": defaults.training,
            "source": "draft: not calibrated",
        }
    return parse_settings(
        ModelProfile, {**values, "model_id": model_id, "heads": {}}, f"a profile of {model_id}"
    )


def _first_shape(model_id: str, text: PreTrainedConfig, defaults: FamilyDefaults) -> RpnShape:
    """Three layers from the middle of the model, or as near to it as they end where heads are."""
    depth = min(3, text.num_hidden_layers - 1)
    having_heads = attention_layers(text)
    starts = [last - depth + 1 for last in having_heads if last >= depth]
    if not starts:
        raise CalibrationError(
            f"{model_id}: only layers {', '.join(map(str, having_heads))} of "
            f"{text.num_hidden_layers} have attention heads, too low for an RPN of {depth} layers "
            "to end in one: use another model"
        )
    return RpnShape(
        branch_layer=nearest(starts, text.num_hidden_layers // 2),
        depth=depth,
        final_norm=defaults.final_norm,
        rotary_scores=defaults.rotary_scores,
    )


def _packaged(model_id: str, size: tuple[str, int, int]) -> ModelProfile | None:
    """The packaged profile of this model, else one of its (family, layers, heads).

    Of several, the first that asks as the family does: another's prompt is for its weights alone.
    """
    profiles = (load_profile(name) for name in packaged_profiles())
    fitting = [p for p in profiles if (p.family, p.num_layers, p.num_heads) == size]
    fitting.sort(
        key=lambda p: (p.model_id != model_id, p.prompt != FAMILIES[p.family].defaults.prompt)
    )
    return next(iter(fitting), None)

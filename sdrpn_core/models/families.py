"""Which adapter serves which family of models."""

from transformers import PreTrainedConfig

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.aya_vision import AyaVisionAdapter
from sdrpn_core.models.cohere_compass import CohereCompassAdapter
from sdrpn_core.models.deepseek_vl import DeepseekVlAdapter
from sdrpn_core.models.deepseek_vl_hybrid import DeepseekVlHybridAdapter
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.gemma3 import Gemma3Adapter
from sdrpn_core.models.gemma4 import Gemma4Adapter
from sdrpn_core.models.gemma4_unified import Gemma4UnifiedAdapter
from sdrpn_core.models.glm4v import Glm4vAdapter
from sdrpn_core.models.glm4v_moe import Glm4vMoeAdapter
from sdrpn_core.models.internvl import InternVlAdapter
from sdrpn_core.models.janus import JanusAdapter
from sdrpn_core.models.lfm2_vl import Lfm2VlAdapter
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.llava_next import LlavaNextAdapter
from sdrpn_core.models.llava_onevision import LlavaOnevisionAdapter
from sdrpn_core.models.minicpmv import MiniCpmVAdapter
from sdrpn_core.models.minicpmv4_7 import MiniCpmV47Adapter
from sdrpn_core.models.mistral3 import Mistral3Adapter
from sdrpn_core.models.not_driven import REASONS, TEXT_MODELS
from sdrpn_core.models.profile_checks import check_profile
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from sdrpn_core.models.qwen3_5 import Qwen3_5Adapter
from sdrpn_core.models.qwen3_5_moe import Qwen3_5MoeAdapter
from sdrpn_core.models.qwen3_vl import Qwen3VlAdapter
from sdrpn_core.models.qwen3_vl_moe import Qwen3VlMoeAdapter
from sdrpn_core.models.smolvlm import SmolVlmAdapter
from sdrpn_core.models.square import SquareAdapter

FAMILIES: dict[str, type[SquareAdapter] | type[DynamicAdapter]] = {
    "aya_vision": AyaVisionAdapter,
    "cohere_compass": CohereCompassAdapter,
    "cosmos3_omni": Qwen3VlAdapter,
    "deepseek_vl": DeepseekVlAdapter,
    "deepseek_vl_hybrid": DeepseekVlHybridAdapter,
    "gemma3": Gemma3Adapter,
    "gemma4": Gemma4Adapter,
    "gemma4_unified": Gemma4UnifiedAdapter,
    "glm4v": Glm4vAdapter,
    "glm4v_moe": Glm4vMoeAdapter,
    "idefics3": SmolVlmAdapter,
    "internvl": InternVlAdapter,
    "janus": JanusAdapter,
    "lfm2_vl": Lfm2VlAdapter,
    "llava": LlavaAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "minicpmv4_6": MiniCpmVAdapter,
    "minicpmv4_7": MiniCpmV47Adapter,
    "mistral3": Mistral3Adapter,
    "qianfan_ocr": InternVlAdapter,
    "qwen2_vl": Qwen2_5VlAdapter,
    "qwen2_5_vl": Qwen2_5VlAdapter,
    "qwen3_vl": Qwen3VlAdapter,
    "qwen3_vl_moe": Qwen3VlMoeAdapter,
    "qwen3_5": Qwen3_5Adapter,
    "qwen3_5_moe": Qwen3_5MoeAdapter,
    "smolvlm": SmolVlmAdapter,
}
"""Adapter by family; a family is named as its models' type in transformers."""


def check_family(profile: ModelProfile) -> None:
    """Refuse a profile of a family that no adapter serves.

    Raises:
        ModelError: naming those that are.
    """
    if profile.family not in FAMILIES:
        raise ModelError(
            f"profile {profile.name!r}: unknown family {profile.family!r}{_why_not(profile.family)}"
            f"; known are {', '.join(FAMILIES)}"
        )


def check_model(profile: ModelProfile, config: PreTrainedConfig, source: str) -> None:
    """Refuse a model that its profile is not for, by its configuration alone.

    Args:
        profile: what is said of the model.
        config: the model's own.
        source: hub id or directory.

    Raises:
        ModelError: saying why.
    """
    if config.model_type not in FAMILIES:
        raise ModelError(not_driven(source, config.model_type))
    if config.model_type != profile.family:
        raise ModelError(
            f"profile {profile.name!r} is for models of family {profile.family!r}, {source!r} is "
            f"of family {config.model_type!r}: choose its own profile"
        )
    check_parts(config, source)
    num_deepstack_layers = FAMILIES[profile.family].count_deepstack_layers(config)
    check_profile(profile, config.get_text_config(decoder=True), num_deepstack_layers)


def check_parts(config: PreTrainedConfig, source: str) -> None:
    """Refuse a model of a known family with parts that cannot be driven.

    Args:
        config: the model's own.
        source: hub id or directory.

    Raises:
        ModelError: saying why.
    """
    kind = config.get_text_config(decoder=True).model_type
    if kind in TEXT_MODELS:
        raise ModelError(
            f"model {source!r}: its text model ({kind}) cannot be driven ({TEXT_MODELS[kind]}): "
            "use a model with another text model"
        )
    FAMILIES[config.model_type].check_config(config, source)


def not_driven(model_id: str, family: str) -> str:
    """What to say of a model whose family no adapter serves."""
    return (
        f"model {model_id!r} is of family {family!r}, which no adapter drives{_why_not(family)}; "
        f"known are {', '.join(FAMILIES)}: choose a model of one of them"
    )


def _why_not(family: str) -> str:
    """What follows the name of a family that cannot be driven."""
    return f" ({REASONS[family]})" if family in REASONS else ""

"""Which adapter serves which family of models."""

from sdrpn_core.models.deepseek_vl import DeepseekVlAdapter
from sdrpn_core.models.deepseek_vl_hybrid import DeepseekVlHybridAdapter
from sdrpn_core.models.dynamic import DynamicAdapter
from sdrpn_core.models.internvl import InternVlAdapter
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.models.qwen2_5_vl import Qwen2_5VlAdapter
from sdrpn_core.models.qwen3_5 import Qwen3_5Adapter
from sdrpn_core.models.qwen3_vl import Qwen3VlAdapter
from sdrpn_core.models.square import SquareAdapter

FAMILIES: dict[str, type[SquareAdapter] | type[DynamicAdapter]] = {
    "deepseek_vl": DeepseekVlAdapter,
    "deepseek_vl_hybrid": DeepseekVlHybridAdapter,
    "internvl": InternVlAdapter,
    "llava": LlavaAdapter,
    "qwen2_vl": Qwen2_5VlAdapter,
    "qwen2_5_vl": Qwen2_5VlAdapter,
    "qwen3_vl": Qwen3VlAdapter,
    "qwen3_5": Qwen3_5Adapter,
}
"""Adapter by family; a family is named as its models' type in transformers."""

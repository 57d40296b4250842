"""Families that no adapter can drive, and why: what is needed of a model that others lack.

The decoder reads an image as tokens that each stand for a place in it, and looks back only, so that
an answer's attention is a map of the image, and a crop can be put behind it. Families that are not
in here, and have no adapter, may only wait for one.
"""

_CROSS_ATTENTION = "its decoder looks at images through layers of their own, not as tokens"
_RESAMPLED = "a few tokens are made of a whole image, and none of them stands for a place in it"
_ENCODER = "its encoder reads image and question at once, in both directions"
_TIMM = "its vision tower is one of the package timm, which is not used here"
_TORCHVISION = "transformers prepares its images by torchvision alone, which is not used here"

REASONS = {
    "aria": _RESAMPLED,
    "blip-2": _RESAMPLED,
    "cohere2_vision": _TORCHVISION,
    "fast_vlm": _TIMM,
    "florence2": _ENCODER,
    "gemma3n": "layers take numbers of their own for every token, or keys of layers below",
    "idefics": _CROSS_ATTENTION,
    "idefics2": _RESAMPLED,
    "instructblip": _RESAMPLED,
    "kimi_k25": _TORCHVISION,
    "kosmos-2": _RESAMPLED,
    "lfm2_vl": _TORCHVISION,
    "llama4": _TORCHVISION,
    "mllama": _CROSS_ATTENTION,
    "molmo2": _TORCHVISION,
    "paligemma": "image and question see each other in both directions",
    "perception_lm": _TIMM,
    "pix2struct": _ENCODER,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
}
"""By family, named as its models' type in transformers."""

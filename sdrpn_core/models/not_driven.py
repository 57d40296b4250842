"""Families that no adapter can drive, and why: what is needed of a model that others lack.

The decoder reads an image as tokens that each stand for a place in it, and looks back only, so that
an answer's attention is a map of the image, and a crop can be put behind it. Its layers can be run
one by one, and an RPN copied from them scores with the norm, query and key of one. Families that
are not in here, and have no adapter, may only wait for one.
"""

_CROSS_ATTENTION = "its decoder looks at images through layers of their own, not as tokens"
_RESAMPLED = "a few tokens are made of a whole image, and none of them stands for a place in it"
_ENCODER = "its encoder reads image and question at once, in both directions"
_TIMM = "its vision tower is one of the package timm, which is not used here"
_TORCHVISION = "transformers prepares its images by torchvision alone, which is not used here"
_LATENT = "its layers make keys of latent vectors, with which no RPN scores"
_NORM_BEHIND = "its layers have no norm in front of queries and keys, and an RPN scores behind one"
_STREAMS = "its layers hand on several states for every token, and an RPN's one"

REASONS = {
    "apertus1p5": _TORCHVISION,
    "aria": _RESAMPLED,
    "blip": _CROSS_ATTENTION,
    "blip-2": _RESAMPLED,
    "chameleon": "its layers norm each head of queries and keys in its own way, an RPN all alike",
    "cohere2_vision": _TORCHVISION,
    "deepseek_ocr2": _RESAMPLED,
    "diffusion_gemma": "it writes many tokens of an answer at once, each of which sees all others",
    "dots3_note": _LATENT,
    "ernie4_5_vl_moe": "its layers have experts for images, and must be told which tokens are some",
    "evolla": "it reads proteins, not images",
    "exaone4_5": _NORM_BEHIND,
    "fast_vlm": _TIMM,
    "florence2": _ENCODER,
    "fuyu": "its layers make queries, keys and values by one matrix, an RPN by one for each",
    "gemma3n": "layers take numbers of their own for every token, or keys of layers below",
    "git": _NORM_BEHIND,
    "glm5_next": _STREAMS,
    "granite4_vision": "image features are added far up its decoder, here behind the first layers",
    "hunyuan_vl": "its layers turn queries and keys before they norm them, an RPN after",
    "hy_v4_vl": _STREAMS,
    "idefics": _CROSS_ATTENTION,
    "idefics2": _RESAMPLED,
    "inkling2": _TORCHVISION,
    "inkling2_loop": _TORCHVISION,
    "inkling_mm_model": _TORCHVISION,
    "instructblip": _RESAMPLED,
    "instructblipvideo": _RESAMPLED,
    "kimi_k25": _TORCHVISION,
    "kosmos-2": _RESAMPLED,
    "kosmos-2.5": _RESAMPLED,
    "lfm3_vl": "neither its chat template nor its markers around an image were found anywhere",
    "llama4": _TORCHVISION,
    "minicpm_ocr": _TORCHVISION,
    "minimax_m3_vl": _TORCHVISION,
    "mistral4": _LATENT,
    "mistral_large4": _LATENT,
    "mllama": _CROSS_ATTENTION,
    "molmo2": _TORCHVISION,
    "muse_glimmer": _TORCHVISION,
    "muse_spark": _TORCHVISION,
    "nemotron_h_omni": _TORCHVISION,
    "paligemma": "image and question see each other in both directions",
    "perception_lm": _TIMM,
    "pi0": "it moves a robot, and answers nothing",
    "pix2struct": _ENCODER,
    "pp_formulanet": _CROSS_ATTENTION,
    "qwen4_exp": _STREAMS,
    "step3p7": _TORCHVISION,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "unlimited_ocr": _TORCHVISION,
    "vision-encoder-decoder": _CROSS_ATTENTION,
}
"""By family, named as its models' type in transformers."""

TEXT_MODELS = {
    "exaone4": _NORM_BEHIND,
    "gpt_oss": "its heads pay a share of their attention to no token, which is not run here",
    "mistral4": _LATENT,
}
"""Of text models that come with families which are driven: Mistral Small 4's is one."""

"""Model card of a trained RPN, in the hub's format."""

import json
import re

from data_contracts.wording import markdown, markdown_code
from sdrpn_core.rpn.config import RpnConfig

_HERE = "with [sdrpn](https://arxiv.org/abs/2509.16944)"
_BY_AUTHORS = "by the authors of [SD-RPN](https://arxiv.org/abs/2509.16944)"

_HUB_ID = re.compile(r"[\w-]+/[\w.-]+")

_CARD = """\
---
{front_matter}
---

# Region proposal network for {name}

A small network that tells a frozen multimodal LLM where in an image to look closer. It was trained
{how} on pseudo-labels made from the model's own attention:
no box or mask was annotated. It holds copies of {depth} decoder layers that branch off after layer
{branch_layer} (the last one reduced to its norm and its query and key projections); the model
itself is not part of it and stays unchanged.{experts}

## Use

```python
from sdrpn_core.pipeline import ZoomPipeline

pipeline = ZoomPipeline.from_pretrained({model_id}, rpn="path/to/this/folder")
print(pipeline.answer([image], ["What does the sign say?"])[0].text)
```
{cost}"""

_EXPERTS = """ Where a layer is a mixture of experts, its experts and
their router are the model's own: they were not trained, and are not in these files."""

_TRAINING = """
## Training

| | |
|---|---|
| Frozen model | {model_id}{revision} |
| Label set | {label_set} |
| Examples | {num_examples} ({num_without_labels} without labels) |
| Training | {num_train} questions about {num_train_images} images |
| Validation | {num_validation} questions about {num_validation_images} other images |
| Epochs, batch size | {num_epochs}, {batch_size} |
| Learning rate, loss | {learning_rate:g}, {loss} |

## Agreement with the pseudo-labels of the validation images

| threshold | precision | recall | F1 | AUC |
|---|---|---|---|---|
| {threshold:g} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {auc:.3f} |

Expected calibration error {calibration_error:.3f} with the plain sigmoid, {calibrated_error} with
calibrated scores (`score_calibration` in `config.json`; each half of the images judged with the
other half's fit).

The threshold was chosen on these validation images, which are part of the training data. How much
the network helps to answer is not measured here: run `sdrpn stage evaluate` on a benchmark.
"""

_IMPORT = """
## Origin

The authors of SD-RPN trained it; it was taken out of their checkpoint {checkpoint}
({architecture}; branch layer: {branch_layer_source}). The region threshold {threshold:g} is one of
those that they chose per benchmark, unless another was given.
"""


def _cost(config: RpnConfig) -> str:
    """What answering does otherwise than the paper."""
    regions = config.regions
    said = {
        f"crops of at most {regions.crop_tokens} tokens": regions.crop_tokens is not None,
        "what masked crops hide left out of the vision tower too": regions.mask_tower,
        "the image in view of the layers below the branch only": regions.withdraw_image,
    }
    *first, last = [text for text, holds in said.items() if holds] or [""]
    if not last:
        return ""
    ways = " and ".join([", ".join(first), last] if first else [last])
    return f"\nUnless told otherwise, it answers with {ways}.\n"


def render_model_card(config: RpnConfig) -> str:
    """README.md with front matter; the same configuration gives the same text."""
    profile = config.profile
    head = _CARD.format(
        cost=_cost(config),
        experts=_EXPERTS if config.shares_experts else "",
        front_matter="\n".join(_front_matter(profile.model_id)),
        name=markdown(profile.name),
        model_id=json.dumps(profile.model_id, ensure_ascii=False),  # Python's notation too
        how=_BY_AUTHORS if config.imported else _HERE,
        **config.shape.model_dump(include={"depth", "branch_layer"}),
    )
    return head + _origin(config)


def _origin(config: RpnConfig) -> str:
    """How the network came about."""
    if config.imported is not None:
        return _IMPORT.format(
            threshold=config.threshold,
            checkpoint=markdown_code(config.imported.checkpoint),
            architecture=markdown(config.imported.architecture),
            branch_layer_source=markdown(config.imported.branch_layer_source),
        )
    if config.training is None or config.data is None:
        raise ValueError("a trained network has its training and data")
    profile, validation = config.profile, config.measured
    return _TRAINING.format(
        model_id=markdown_code(profile.model_id),
        revision=f" at {markdown_code(profile.revision)}" if profile.revision else "",
        label_set=markdown_code(config.label_set or ""),
        loss=config.training.loss.type,
        auc=validation.calibration.auc,
        calibration_error=validation.calibration.expected_calibration_error,
        calibrated_error=(
            f"{validation.calibrated.expected_calibration_error:.3f}"
            if validation.calibrated
            else "unknown"
        ),
        **config.data.model_dump(),
        **config.training.model_dump(include={"num_epochs", "batch_size", "learning_rate"}),
        **validation.chosen.model_dump(),
    )


def _front_matter(model_id: str) -> list[str]:
    tags = ["library_name: sdrpn", "tags:", "- region-proposal", "- visual-question-answering"]
    if _HUB_ID.fullmatch(model_id):
        # The weights start as copies of the model's, so its licence applies to them.
        licence = ["license: other", "license_name: same-as-base-model"]
        link = [f"license_link: https://huggingface.co/{model_id}"]
        return [f"base_model: {model_id}", *licence, *link, *tags]
    return ["license: apache-2.0" if model_id == "reference" else "license: unknown", *tags]

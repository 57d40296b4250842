"""Ways of answering that evaluation compares, all over the same mechanism.

Every method that crops answers with ``[image, crops]`` in one prompt, encodes each image once and
decodes greedily; methods differ in where the crop comes from. Where it comes from a map's regions
(raw_attention, sdrpn), it is masked as the region settings say; others crop boxes and show all of
them. What that costs:

* base: one pass. random_crop, oracle: one pass with a crop.
* raw_attention: a whole answer, then a pass with the crop. An answer without response tokens or
  without end gives no map, hence no crop.
* vicrop: two prefill passes up to the layer that is read (the original runs all layers), then a
  pass with the crop; its variants are in ``vicrop.py``.
* sdrpn: the ``ZoomPipeline``: layers below the branch and the RPN, then the second stage, which
  reuses the prefix. sdrpn_withdrawn: the same with the image withdrawn from the upper layers. Both
  are asked for by name, whichever of them the pipeline is set to.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_contracts.configs import EvaluationConfig, ExtractionConfig
from data_contracts.enums import Method
from data_contracts.label_settings import RegionSettings
from sdrpn_core.benchmarks import Document, UnusableDocument
from sdrpn_core.evaluation.baselines import (
    random_crop_box,
    raw_attention_regions,
    vicrop_box,
)
from sdrpn_core.evaluation.vicrop import Pictures, importance_maps, most_grounding_layer
from sdrpn_core.extraction.generated_answers import ExtractedAttention, Request, extract_attention
from sdrpn_core.generation.greedy import answer_plain
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.regions import Region
from sdrpn_core.zoom.crop_masks import masked_crops

DEFAULT_CROP_SIDE_RATIO = 1 / 3
"""Random crops of documents without a true box: share of each side of the image."""

_MAP_TOKENS = ExtractionConfig().max_new_tokens
"""Fewest tokens allowed to an answer that raw attention is read from: the list of boxes that a
profile asks for is longer than the answers of many benchmarks."""

ZOOMS = (Method.SDRPN, Method.SDRPN_WITHDRAWN)
"""Methods that crop where the RPN says."""

READ_ATTENTION = frozenset(Method) - {Method.BASE, Method.RANDOM_CROP, Method.ORACLE, *ZOOMS}
"""Methods that need to know the model's grounding heads."""

FloatMap = NDArray[np.float32]


@dataclass(frozen=True)
class MethodAnswer:
    """One method's answer to one document."""

    text: str
    boxes: tuple[BoxXYXY, ...]
    """Crops in source pixels; empty if the image alone was used."""
    grid: GridShape
    letterbox: Letterbox
    roi_map: FloatMap | None = None
    """(h, w) scores that the boxes come from."""
    sink_map: FloatMap | None = None
    """(h, w) sink signal beside raw attention."""
    num_crop_tokens: int = 0
    """Tokens of the crops that the decoder got."""


@dataclass(frozen=True)
class _Proposal:
    """Where to look in one document, and why."""

    regions: tuple[Region, ...] = ()
    roi_map: FloatMap | None = None
    sink_map: FloatMap | None = None
    letterbox: Letterbox | None = None
    """How the map lies over the image; None as the image itself was seen."""


class Answerer:
    """Answers batches of documents with any method."""

    def __init__(
        self,
        adapter: ModelAdapter,
        settings: EvaluationConfig,
        pipeline: ZoomPipeline | None = None,
    ) -> None:
        """Prepare the methods.

        Args:
            adapter: the frozen model.
            settings: answer length, crop padding, thresholds.
            pipeline: over ``adapter``; only ``sdrpn`` and ``sdrpn_withdrawn`` need it. Where there
                is one, raw attention uses its region settings, and every method its
                ``crop_tokens``, unless the settings say how many.

        Raises:
            ModelError: if those are too few for a cell.
        """
        self.adapter = adapter
        self.settings = settings
        regions = pipeline.regions if pipeline else adapter.profile.regions
        if settings.crop_tokens is not None:
            regions = regions.with_changes(crop_tokens=settings.crop_tokens)
        adapter.check_regions(regions)
        self._regions = regions
        self._pipelines = {} if pipeline is None else _zooms(pipeline, regions)

    @torch.inference_mode()
    def answer(
        self, method: Method, images: Sequence[Image.Image], documents: Sequence[Document]
    ) -> list[MethodAnswer]:
        """Answer one batch.

        Args:
            method: how.
            images: upright RGB, one per document.
            documents: the questions; ``oracle`` needs the true box of each.

        Raises:
            ModelError: if the RPN is to say where, and there is no pipeline.
        """
        if method in ZOOMS:
            return self._answer_sdrpn(method, images, documents)
        # Buffers that another method's decoding left may be in its way.
        return self.adapter.step_pool.with_room(lambda: self._answer(method, images, documents))

    def _answer(
        self, method: Method, images: Sequence[Image.Image], documents: Sequence[Document]
    ) -> list[MethodAnswer]:
        features = self.adapter.encode_images(images)
        proposals = self._propose(method, images, documents, features)
        regions = [proposal.regions for proposal in proposals]
        crops = masked_crops(self.adapter, images, regions, self._regions)
        responses = answer_plain(
            self.adapter,
            [document.question for document in documents],
            [[image, *row] for image, row in zip(features, crops, strict=True)],
            max_new_tokens=self.settings.max_new_tokens,
        )
        return [
            MethodAnswer(
                text=response.text,
                boxes=tuple(region.box for region in proposal.regions),
                grid=image.grid if proposal.roi_map is None else GridShape(*proposal.roi_map.shape),
                letterbox=proposal.letterbox or image.letterbox,
                num_crop_tokens=sum(crop.num_tokens for crop in row),
                roi_map=proposal.roi_map,
                sink_map=proposal.sink_map,
            )
            for response, proposal, image, row in zip(
                responses, proposals, features, crops, strict=True
            )
        ]

    def _propose(
        self,
        method: Method,
        images: Sequence[Image.Image],
        documents: Sequence[Document],
        features: Sequence[ImageFeatures],
    ) -> list[_Proposal]:
        padding_ratio = self.settings.crop_padding_ratio
        match method:
            case Method.RANDOM_CROP:
                return [
                    _Proposal((Region(random_box(document, image.size, padding_ratio)),))
                    for document, image in zip(documents, images, strict=True)
                ]
            case Method.ORACLE:
                return [
                    _Proposal((Region(oracle_box(document, image.size, padding_ratio)),))
                    for document, image in zip(documents, images, strict=True)
                ]
            case Method.RAW_ATTENTION:
                return self._propose_raw_attention(images, documents, features)
            case Method.BASE:
                return [_Proposal() for _ in documents]
            case _:
                return self._propose_vicrop(method, images, documents, features)

    def _propose_raw_attention(
        self,
        images: Sequence[Image.Image],
        documents: Sequence[Document],
        features: Sequence[ImageFeatures],
    ) -> list[_Proposal]:
        requests = [
            Request(image, document.question, document.kind)
            for image, document in zip(images, documents, strict=True)
        ]
        extracted = extract_attention(
            self.adapter,
            requests,
            max_new_tokens=max(self.settings.max_new_tokens, _MAP_TOKENS),
            features=features,
        )
        return [self._raw_proposal(attention) for attention in extracted]

    def _raw_proposal(self, attention: ExtractedAttention) -> _Proposal:
        if attention.grounding is None:
            return _Proposal()
        scores: FloatMap = attention.grounding.numpy()
        regions = raw_attention_regions(
            scores,
            self.settings.raw_attention_threshold,
            self._regions.model_copy(update={"threshold_is_peak_ratio": True}),
            attention.letterbox,
        )
        return _Proposal(
            regions=regions,
            roi_map=scores,
            sink_map=None if attention.sink is None else attention.sink.numpy(),
        )

    def _propose_vicrop(
        self,
        method: Method,
        images: Sequence[Image.Image],
        documents: Sequence[Document],
        features: Sequence[ImageFeatures],
    ) -> list[_Proposal]:
        questions = [document.question for document in documents]
        layers = [most_grounding_layer(self.adapter.profile, d.kind) for d in documents]
        shown = Pictures(images, features, questions, layers)
        proposals = []
        for scores, letterbox in importance_maps(self.adapter, method, shown):
            box = vicrop_box(scores, letterbox, self.adapter.input_side)
            regions = () if box is None else (Region(box),)
            proposals.append(_Proposal(regions, scores.astype(np.float32), letterbox=letterbox))
        return proposals

    def _answer_sdrpn(
        self, method: Method, images: Sequence[Image.Image], documents: Sequence[Document]
    ) -> list[MethodAnswer]:
        if method not in self._pipelines:
            raise ModelError(
                f"method {method.value} needs a trained RPN: run `sdrpn stage train-rpn` first"
            )
        answers = self._pipelines[method].answer(
            images,
            [document.question for document in documents],
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=len(images),
        )
        return [
            MethodAnswer(
                text=answer.text,
                boxes=answer.boxes,
                grid=GridShape(*answer.roi_map.shape),
                letterbox=self.adapter.letterbox(image.size),
                num_crop_tokens=answer.num_crop_tokens,
                roi_map=answer.roi_map,
            )
            for answer, image in zip(answers, images, strict=True)
        ]


def _zooms(pipeline: ZoomPipeline, regions: RegionSettings) -> dict[Method, ZoomPipeline]:
    """The pipeline with the image kept in all layers, and withdrawn."""
    kept, withdrawn = copy(pipeline), copy(pipeline)
    kept.regions = regions.with_changes(withdraw_image=False)
    withdrawn.regions = regions.with_changes(withdraw_image=True)
    return {Method.SDRPN: kept, Method.SDRPN_WITHDRAWN: withdrawn}


def oracle_box(document: Document, image_size: tuple[int, int], padding_ratio: float) -> BoxXYXY:
    """The true box with a margin on each side, inside the image.

    Raises:
        ValueError: if the document has no true box.
        UnusableDocument: if it lies outside the image.
    """
    box = document.true_box
    if box is None:
        raise ValueError(f"document {document.question_id} has no true box")
    check_true_box(document, image_size)
    margin_x, margin_y = (box.x1 - box.x0) * padding_ratio, (box.y1 - box.y0) * padding_ratio
    grown = BoxXYXY(box.x0 - margin_x, box.y0 - margin_y, box.x1 + margin_x, box.y1 + margin_y)
    return grown.intersection(BoxXYXY.whole(image_size))


def check_true_box(document: Document, image_size: tuple[int, int]) -> None:
    """See to it that a document's true box, if it has one, shows a part of its image.

    Raises:
        UnusableDocument: if it lies outside the image.
    """
    box = document.true_box
    if box is not None and not box.shows_part_of(image_size):
        raise UnusableDocument(
            f"{document.image_uri}: the true box {tuple(box)} of {document.question!r} is outside "
            f"the image, which has {image_size[0]} x {image_size[1]} pixels; mend the boxes"
        )


def random_box(document: Document, image_size: tuple[int, int], padding_ratio: float) -> BoxXYXY:
    """A random place for a crop of the oracle's size, so that only the place is random.

    Documents without a true box get ``DEFAULT_CROP_SIDE_RATIO`` of each side.
    """
    width, height = (side * DEFAULT_CROP_SIDE_RATIO for side in image_size)
    if document.true_box is not None:
        oracle = oracle_box(document, image_size, padding_ratio)
        width, height = oracle.x1 - oracle.x0, oracle.y1 - oracle.y0
    return random_crop_box(image_size, (width, height), document.question_id)

"""One harness for all methods: same batches, same images, same clock.

Methods take turns on each batch, starting with another one every time, so that a machine that slows
down slows all of them. Time covers the vision tower, region search, crops and decoding of the
answer; reading and decoding image files does not count. Each method first answers a few documents
unmeasured. Answers depend on neither batch size nor order; times do, and are reported apart.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from PIL import Image

from data_contracts.configs import EvaluationConfig
from data_contracts.enums import Method
from sdrpn_core.benchmarks import Document, UnusableDocument, score
from sdrpn_core.clock import synchronized_seconds
from sdrpn_core.evaluation.methods import Answerer, MethodAnswer, check_true_box
from sdrpn_core.evaluation.speed import BatchTime
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.pipeline import ZoomPipeline

log = logging.getLogger(__name__)

STAGE_VERSION = 7
"""Raise when the same model, documents and settings give other answers or scores."""

NUM_WARM_UP_CPU = 2
"""Unmeasured documents per method on a CPU; a GPU warms up with a whole batch."""


class Evaluator:
    """Evaluates documents; keep one per process, so that it warms up once."""

    def __init__(
        self,
        adapter: ModelAdapter,
        settings: EvaluationConfig,
        pipeline: ZoomPipeline | None = None,
    ) -> None:
        """Prepare.

        Args:
            adapter: the frozen model.
            settings: methods, answer length, crop padding, thresholds.
            pipeline: over ``adapter``; see ``Answerer``.
        """
        self._answerer = Answerer(adapter, settings, pipeline)
        self._settings = settings
        self.device = adapter.device
        self._is_warm: set[Method] = set()
        self._num_batches = 0
        """Answered so far; says which method is the next one's first."""

    def evaluate(
        self,
        documents: Sequence[Document],
        load_images: Callable[[Sequence[str]], Sequence[Image.Image]],
        *,
        batch_size: int,
        on_batch: Callable[[Mapping[Method, BatchTime]], None] = lambda times: None,
    ) -> list[dict[str, Any]]:
        """Answer documents with every method.

        The oracle answers only the documents that have a true box. One outside its image, of which
        no figure could be made, counts as none, and is told.

        Args:
            documents: of any benchmarks; the score follows each one's ``benchmark``.
            load_images: image URIs of a batch -> upright RGB images.
            batch_size: documents per batch; does not change the answers.
            on_batch: told after each batch how long each method took.

        Returns:
            Rows of ``prediction.v4``, by document, then method.
        """
        methods = self._settings.methods
        rows: list[dict[str, Any]] = []
        for start in range(0, len(documents), batch_size):
            batch = documents[start : start + batch_size]
            images = load_images([document.image_uri for document in batch])
            batch = _with_boxes_inside(batch, images)
            first = self._num_batches % max(len(methods), 1)
            by_method: dict[Method, dict[int, dict[str, Any]]] = {}
            times: dict[Method, BatchTime] = {}
            for method in methods[first:] + methods[:first]:
                by_method[method], seconds = self._evaluate_batch(method, batch, images)
                if by_method[method]:
                    times[method] = BatchTime(len(by_method[method]), seconds)
            for index in range(len(batch)):
                found = (by_method[method].get(index) for method in methods)
                rows += [row for row in found if row is not None]
            self._num_batches += 1
            on_batch(times)
        return rows

    def _evaluate_batch(
        self, method: Method, documents: Sequence[Document], images: Sequence[Image.Image]
    ) -> tuple[dict[int, dict[str, Any]], float]:
        """Rows by position in the batch, of the documents that the method can answer; seconds."""
        chosen = [
            index
            for index, document in enumerate(documents)
            if method is not Method.ORACLE or document.true_box is not None
        ]
        if not chosen:
            return {}, 0.0
        own_documents = [documents[index] for index in chosen]
        own_images = [images[index] for index in chosen]
        self._warm_up(method, own_documents, own_images)
        start = synchronized_seconds(self.device)
        answers = self._answerer.answer(method, own_images, own_documents)
        seconds = synchronized_seconds(self.device) - start
        return {
            index: prediction_row(method, documents[index], answer)
            for index, answer in zip(chosen, answers, strict=True)
        }, seconds

    def _warm_up(
        self, method: Method, documents: list[Document], images: list[Image.Image]
    ) -> None:
        if method in self._is_warm:
            return
        count = NUM_WARM_UP_CPU if self.device.type == "cpu" else len(documents)
        self._answerer.answer(method, images[:count], documents[:count])
        self._is_warm.add(method)


def _with_boxes_inside(
    documents: Sequence[Document], images: Sequence[Image.Image]
) -> list[Document]:
    """The documents, without true boxes that lie outside their images."""
    kept, outside = [], []
    for document, image in zip(documents, images, strict=True):
        try:
            check_true_box(document, image.size)
        except UnusableDocument as error:
            outside.append(error)
            document = replace(document, true_box=None)
        kept.append(document)
    if outside:
        log.warning("true boxes left out: %d; the first: %s", len(outside), outside[0])
    return kept


def prediction_row(method: Method, document: Document, answer: MethodAnswer) -> dict[str, Any]:
    """One row of ``prediction.v4``."""
    letterbox = answer.letterbox
    return {
        "benchmark": document.benchmark,
        "method": method.value,
        "question_id": document.question_id,
        "category": document.category,
        "kind": document.kind.value,
        "image_uri": document.image_uri,
        "question": document.question,
        "answers": list(document.answers),
        "prediction": answer.text,
        "score": score(document.benchmark, answer.text.strip(), document.row()),
        "boxes": [list(crop) for crop in answer.boxes],
        "num_crop_tokens": answer.num_crop_tokens,
        "true_box": None if document.true_box is None else list(document.true_box),
        "roi_map": None if answer.roi_map is None else answer.roi_map.ravel().tolist(),
        "sink_map": None if answer.sink_map is None else answer.sink_map.ravel().tolist(),
        "grid_height": answer.grid.height,
        "grid_width": answer.grid.width,
        **asdict(letterbox),
    }

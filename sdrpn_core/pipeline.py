"""The zoom lens: a stock model, an RPN beside it, questions about high-resolution images.

The pipeline keeps nothing on the model: several pipelines with different RPNs can share one
adapter, also from several threads.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.regions import propose_regions
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom import crop_image, first_stage, second_stage


@dataclass(frozen=True)
class ZoomAnswer:
    """Answer to one question."""

    text: str
    boxes: tuple[BoxXYXY, ...]
    """Regions that were zoomed into, in source pixels; empty if the image alone answered."""
    roi_map: NDArray[np.float32]
    """(h, w) probability that a cell matters to the question."""
    used_crop: bool
    seconds: dict[str, float]
    """This question's share of its batch's wall-clock time, by phase."""


class ZoomPipeline:
    """Batched two-stage inference."""

    def __init__(
        self,
        adapter: ModelAdapter,
        rpn: RegionProposalNetwork,
        *,
        threshold: float,
        regions: RegionSettings,
    ) -> None:
        self.adapter = adapter
        self.rpn = rpn.eval()
        self.threshold = threshold
        self.regions = regions

    @classmethod
    def from_pretrained(
        cls, model: str, rpn: str | Path, *, device: str = "auto", dtype: str = "float32"
    ) -> Self:
        """Load a model and an RPN checkpoint directory.

        Args:
            model: hub id or directory of the stock model, or the name of the profile that the RPN
                was trained with.
            rpn: directory of an RPN checkpoint.
            device: torch device, or ``auto``.
            dtype: name of a torch dtype.

        Raises:
            SdrpnError: if either cannot be loaded, or they do not fit each other.
        """
        checkpoint = RpnCheckpoint.load_directory(Path(rpn))
        return cls.from_checkpoint(checkpoint, model, device=device, dtype=dtype)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: RpnCheckpoint,
        model: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "float32",
    ) -> Self:
        """Load the model that an RPN was trained for.

        Args:
            checkpoint: the RPN.
            model: as of ``from_pretrained``; None takes what the RPN was trained on.
            device: torch device, or ``auto``.
            dtype: name of a torch dtype.
        """
        profile = checkpoint.config.profile
        if model is not None and model != profile.name:
            profile = profile.model_copy(update={"model_id": model})
        adapter = load_adapter(profile, device=device, dtype=dtype)
        return cls(
            adapter,
            checkpoint.build(adapter),
            threshold=checkpoint.config.threshold,
            regions=checkpoint.config.regions,
        )

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 16,
    ) -> list[ZoomAnswer]:
        """Answer one question per image, zooming in where the RPN finds something.

        Args:
            images: upright RGB images of any sizes.
            questions: one per image.
            max_new_tokens: most tokens per answer.
            batch_size: questions per forward pass; does not change the answers.
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images for {len(questions)} questions")
        answers: list[ZoomAnswer] = []
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            answers += self._answer_batch(images[start:stop], questions[start:stop], max_new_tokens)
        return answers

    def boxes(self, roi_map: NDArray[np.float32], letterbox: Letterbox) -> tuple[BoxXYXY, ...]:
        """Regions of one RoI map in source pixels; those wholly in the padding are dropped."""
        grid = GridShape(*roi_map.shape)
        regions = propose_regions(
            roi_map, self.threshold, self.regions, content_mask=letterbox.content_mask(grid)
        )
        boxes = (letterbox.cells_to_image(region, grid) for region in regions)
        return tuple(box for box in boxes if box.area > 0)

    def _answer_batch(
        self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int
    ) -> list[ZoomAnswer]:
        clock = _PhaseClock(len(images))
        features = self.adapter.encode_images(images)
        clock.lap("encode_image")
        first = first_stage(self.adapter, self.rpn, features, questions)
        roi_maps = [logits.sigmoid().numpy() for logits in first.roi_logits]
        clock.lap("propose")
        boxes = [
            self.boxes(roi_map, image.letterbox)
            for roi_map, image in zip(roi_maps, features, strict=True)
        ]
        crops = [
            crop_image(image, box) for image, row in zip(images, boxes, strict=True) for box in row
        ]
        encoded = iter(self.adapter.encode_images(crops) if crops else [])
        clock.lap("encode_crops")
        responses = second_stage(
            self.adapter,
            first,
            [[next(encoded) for _ in row] for row in boxes],
            max_new_tokens=max_new_tokens,
        )
        clock.lap("answer")
        return [
            ZoomAnswer(response.text, row, roi_map, bool(row), dict(clock.seconds))
            for response, row, roi_map in zip(responses, boxes, roi_maps, strict=True)
        ]


class _PhaseClock:
    """Wall-clock seconds per question by phase."""

    def __init__(self, num_questions: int) -> None:
        self.seconds: dict[str, float] = {}
        self._num_questions = num_questions
        self._start = time.perf_counter()

    def lap(self, phase: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] = (now - self._start) / self._num_questions
        self._start = now

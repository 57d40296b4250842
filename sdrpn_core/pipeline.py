"""The zoom lens: a stock model, an RPN beside it, questions about high-resolution images.

The pipeline keeps nothing on the model; between calls, only the adapter keeps something, buffers of
decoding steps (``step_pool``). Several pipelines with different RPNs can share one adapter, and any
of them can be called from several threads at once; the threads share the model's weights and the
device, so this saves memory and waiting, not arithmetic.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from functools import partial
from numbers import Real
from pathlib import Path
from threading import Event
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_contracts.label_settings import RegionSettings
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.devices import DeviceMap, answering_dtype, resolve_device
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.families import FAMILIES, check_family
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import named_model
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.score_calibration import ScoreCalibration
from sdrpn_core.zoom.answers import (
    PhaseClock,
    StartedBatch,
    TextPiece,
    ZoomAnswer,
    stream_answers,
    whole_answers,
)
from sdrpn_core.zoom.crop_masks import masked_crops
from sdrpn_core.zoom.encoded_images import EncodedImage, batches_by_image, encoded_batches
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.gate import Zoom, decide_zoom
from sdrpn_core.zoom.refusals import checked_images, require_finite
from sdrpn_core.zoom.second_stage import second_stage_prefill


class ZoomPipeline:
    """Batched two-stage inference."""

    def __init__(
        self,
        adapter: ModelAdapter,
        rpn: RegionProposalNetwork,
        *,
        threshold: float,
        regions: RegionSettings,
        score_calibration: ScoreCalibration | None = None,
    ) -> None:
        """Put an RPN beside a model.

        Args:
            adapter: the frozen model.
            rpn: trained beside it.
            threshold: of ``crop_regions``.
            regions: how a RoI map becomes boxes, when no crop is worth it, and what the second
                stage reads.
            score_calibration: RoI logits -> probabilities; the plain sigmoid if None.

        Raises:
            ModelError: if the RPN branches off elsewhere than the adapter's profile says, or the
                family cannot follow ``regions``.
        """
        if rpn.branch_layer != (branch_layer := adapter.profile.rpn.branch_layer):
            raise ModelError(
                f"the RPN branches off before layer {rpn.branch_layer}, profile "
                f"{adapter.profile.name!r} before layer {branch_layer}: use the profile that it "
                "was trained with"
            )
        self.adapter = adapter
        self.rpn = rpn.eval()
        self.threshold = threshold
        self.regions = regions
        self.score_calibration = score_calibration or ScoreCalibration()

    @property
    def threshold(self) -> float:
        """Of ``crop_regions``: a share of the map's peak, or a probability."""
        return self._threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        given: object = threshold
        if not isinstance(given, Real) or not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}: give a number from 0 to 1")
        self._threshold: float = threshold

    @property
    def regions(self) -> RegionSettings:
        """How a RoI map becomes boxes, and what the second stage reads."""
        return self._regions

    @regions.setter
    def regions(self, regions: RegionSettings) -> None:
        given: object = regions
        if not isinstance(given, RegionSettings):
            raise ValueError(
                f"regions is a {type(regions).__name__}: give settings, as "
                "regions.with_changes(max_regions=3) returns them"
            )
        self.adapter.check_regions(regions)
        self._regions: RegionSettings = regions

    @classmethod
    def from_pretrained(
        cls,
        model: str | None,
        rpn: str | Path,
        *,
        device: str = "auto",
        dtype: str | None = None,
        device_map: DeviceMap | None = None,
        crop_tokens: int | None = None,
        withdraw_image: bool | None = None,
    ) -> Self:
        """Load a model and an RPN checkpoint directory.

        Args:
            model: hub id or directory of the stock model, or the name of the profile that the RPN
                was trained with, or of a packaged one; None takes what it was trained on.
            rpn: directory of an RPN checkpoint.
            device: torch device, or ``auto``.
            dtype: name of a torch dtype; None takes the RPN's own on a GPU, float32 on a CPU.
            device_map: spreads the model over several devices instead.
            crop_tokens: as of ``RegionSettings``; None as the RPN was made for.
            withdraw_image: as of ``RegionSettings``; None as the RPN was made for.

        Raises:
            SdrpnError: if either cannot be loaded, or they do not fit each other.
        """
        checkpoint = RpnCheckpoint.load_directory(Path(rpn))
        return cls.from_checkpoint(
            checkpoint,
            model,
            device=device,
            dtype=dtype,
            device_map=device_map,
            crop_tokens=crop_tokens,
            withdraw_image=withdraw_image,
        )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: RpnCheckpoint,
        model: str | None = None,
        *,
        device: str = "auto",
        dtype: str | None = None,
        device_map: DeviceMap | None = None,
        crop_tokens: int | None = None,
        withdraw_image: bool | None = None,
    ) -> Self:
        """Load the model that an RPN was trained for.

        Args:
            checkpoint: the RPN.
            model: as of ``from_pretrained``; None takes what the RPN was trained on.
            device: torch device, or ``auto``.
            dtype: name of a torch dtype; None takes the RPN's own on a GPU, float32 on a CPU.
            device_map: spreads the model over several devices instead.
            crop_tokens: as of ``from_pretrained``.
            withdraw_image: as of ``from_pretrained``.

        Raises:
            SdrpnError: as of ``from_pretrained``.
        """
        profile = checkpoint.config.profile
        check_family(profile)
        FAMILIES[profile.family].check_crop_tokens(crop_tokens)  # before a model is loaded for it
        if model not in (None, profile.name) and (meant := named_model(model)) != profile.model_id:
            # The pinned commit is of the other repository.
            profile = profile.model_copy(update={"model_id": meant, "revision": None})
        if dtype is None:
            place = resolve_device(device if device_map is None else "auto")
            dtype = answering_dtype(checkpoint.config.dtype, place)
        adapter = load_adapter(profile, device=device, dtype=dtype, device_map=device_map)
        return cls.beside(
            adapter, checkpoint, crop_tokens=crop_tokens, withdraw_image=withdraw_image
        )

    @classmethod
    def beside(
        cls,
        adapter: ModelAdapter,
        checkpoint: RpnCheckpoint,
        *,
        crop_tokens: int | None = None,
        withdraw_image: bool | None = None,
    ) -> Self:
        """Put a trained RPN beside a model that is loaded already, with all it was made for.

        ``crop_tokens`` and ``withdraw_image`` as of ``from_pretrained``.

        Raises:
            SdrpnError: if they do not fit each other, or ``crop_tokens`` is too few for a cell.
        """
        adapter.check_crop_tokens(crop_tokens)
        config = checkpoint.config
        changes = {"crop_tokens": crop_tokens, "withdraw_image": withdraw_image}
        said = {key: value for key, value in changes.items() if value is not None}
        return cls(
            adapter,
            checkpoint.build(adapter),
            threshold=config.threshold,
            regions=config.regions.with_changes(**said),
            score_calibration=config.score_calibration,
        )

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 16,
    ) -> list[ZoomAnswer]:
        """Answer one question per image, zooming in where that helps.

        Several questions about one image share its encoding if they come with the same object:
        ``answer([image] * 3, questions)``.

        Args:
            images: of any sizes and modes; turned upright and made RGB. Each is taken out of the
                sequence once, so one that decodes on access does so once per image. All are held
                until the call ends, and stay loaded: give thousands in several calls.
            questions: one per image.
            max_new_tokens: most tokens per answer; at least 1.
            batch_size: questions per forward pass, at least 1; does not change the answers.

        Raises:
            UnreadableImage: if an image is damaged.
            ModelError: if a question contains the model's image placeholder, or the model's
                numbers overflow in its precision.
            ValueError: if there are not as many images as questions, or a number is below 1.
        """
        return self._answer(images, questions, max_new_tokens, batch_size, Event())

    def stream(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 16,
    ) -> Iterator[TextPiece]:
        """The same answers, piece by piece as they are generated.

        The pieces of one question, put together, are its answer's text. Questions of a batch take
        turns; the last piece of each carries the whole answer. Arguments as of ``answer``.
        """
        images = checked_images(self.adapter, images, questions, max_new_tokens, batch_size)
        return self._stream(self._batches(images, questions, batch_size), max_new_tokens)

    async def aanswer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 16,
    ) -> list[ZoomAnswer]:
        """``answer`` in a worker thread, so that an event loop goes on meanwhile.

        Cancelling stops the waiting at once, and the thread at its next token.
        """
        has_left = Event()
        try:
            return await asyncio.to_thread(
                self._answer, images, questions, max_new_tokens, batch_size, has_left
            )
        finally:
            has_left.set()

    async def astream(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 16,
    ) -> AsyncIterator[TextPiece]:
        """``stream`` with each step in a worker thread; leaving the loop early stops generation."""
        pieces = self.stream(
            images, questions, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    def zoom(
        self,
        roi_map: NDArray[np.float32],
        image: ImageFeatures,
        threshold: float,
        regions: RegionSettings,
    ) -> Zoom:
        """Where one RoI map says to look, and whether it is worth it.

        Args:
            roi_map: (h, w) probabilities.
            image: that it is of.
            threshold: the pipeline's, as the map's batch began.
            regions: the same of its settings.
        """
        seen = self.adapter.pixels_seen(image)
        return decide_zoom(roi_map, threshold, regions, image.letterbox, seen)

    def _answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        max_new_tokens: int,
        batch_size: int,
        has_left: Event,
    ) -> list[ZoomAnswer]:
        """``answer``, while its caller waits for it."""
        images = checked_images(self.adapter, images, questions, max_new_tokens, batch_size)
        answers: dict[int, ZoomAnswer] = {}
        for batch in self._batches(images, questions, batch_size):
            answers |= whole_answers(self.adapter, batch, max_new_tokens, has_left)
            del batch  # its cache, before the next one's is made
        return [answers[index] for index in range(len(questions))]

    def _stream(self, batches: Iterator[StartedBatch], max_new_tokens: int) -> Iterator[TextPiece]:
        for batch in batches:
            yield from stream_answers(self.adapter, batch, max_new_tokens)
            del batch  # its cache, before the next one's is made

    def _batches(
        self, images: Sequence[Image.Image], questions: Sequence[str], batch_size: int
    ) -> Iterator[StartedBatch]:
        """Run everything before the first token, batch by batch, questions about an image together.

        The next batch's images are prepared meanwhile.
        """
        batches = batches_by_image(images, batch_size)
        with closing(encoded_batches(self.adapter, images, batches)) as encoded:
            for indices in batches:
                clock = PhaseClock(len(indices), self.adapter.device)
                rows = next(encoded)
                clock.lap("encode_image")
                start = partial(self._start_batch, indices, rows, questions, clock)
                yield self.adapter.step_pool.with_room(start)

    @torch.inference_mode()
    def _start_batch(
        self,
        indices: Sequence[int],
        encoded: Sequence[EncodedImage],
        questions: Sequence[str],
        clock: PhaseClock,
    ) -> StartedBatch:
        threshold, regions = self.threshold, self.regions  # others may set new ones meanwhile
        own = [questions[index] for index in indices]
        first = first_stage(self.adapter, self.rpn, [item.features for item in encoded], own)
        are_finite = [bool(logits.isfinite().all()) for logits in first.roi_logits]
        require_finite("RoI map", are_finite, self.adapter.dtype, indices, questions)
        roi_maps = tuple(self.score_calibration.probability(m).numpy() for m in first.roi_logits)
        zooms = tuple(
            self.zoom(roi_map, item.features, threshold, regions)
            for roi_map, item in zip(roi_maps, encoded, strict=True)
        )
        clock.lap("propose")
        crops = masked_crops(
            self.adapter,
            [item.image for item in encoded],
            [zoom.regions for zoom in zooms],
            regions,
        )
        clock.lap("encode_crops")
        start = second_stage_prefill(
            self.adapter, first, crops, withdraw_image=regions.withdraw_image
        )
        require_finite("answer", start.rows_finite(), self.adapter.dtype, indices, questions)
        clock.lap("prefill")
        return StartedBatch(
            indices=tuple(indices),
            zooms=zooms,
            roi_maps=roi_maps,
            num_crop_tokens=tuple(sum(crop.num_tokens for crop in row) for row in crops),
            start=start,
            clock=clock,
        )

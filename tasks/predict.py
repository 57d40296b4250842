"""Zoom inference with an RPN of the store: what ``sdrpn predict`` does."""

from dataclasses import dataclass
from functools import cache

from PIL import Image

from data_contracts.runtime import RuntimeConfig
from sdrpn_core.geometry import Letterbox
from sdrpn_core.models.devices import resolve_dtype
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.report.overlay import draw_boxes, draw_heat_map, fade_hidden
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.zoom.answers import ZoomAnswer
from tasks.artifacts.store import ArtifactStore
from tasks.predict_files import picture_bytes
from tasks.rpn_files import find_checkpoint, newest_rpn
from tasks.shown_answers import rounded_box, shown_box, shown_text

_BOX_COLOUR = (40, 220, 90)
_HEAT_OPACITY = 0.45
"""Fainter than in reports: what was asked about lies under it, and is to be read."""


@dataclass(frozen=True, eq=False)  # compared by identity: runtime settings cannot be hashed
class PredictSetup:
    """The RPN to answer with, and how; loaded when first asked for."""

    store: ArtifactStore
    runtime: RuntimeConfig
    rpn: str | None
    model: str | None
    crop_tokens: int | None
    withdraw_image: bool | None
    dtype: str | None

    def __post_init__(self) -> None:
        """Check the precision before anything is loaded.

        Raises:
            UnknownChoice: if models do not run in it.
        """
        if self.dtype is not None:
            resolve_dtype(self.dtype)

    @cache  # noqa: B019 - one setup lives as long as the command
    def checkpoint(self) -> RpnCheckpoint:
        """The RPN."""
        return find_checkpoint(self.store, self.rpn_name())

    @cache  # noqa: B019
    def rpn_name(self) -> str:
        """Which RPN it is: the one asked for, or the store's newest."""
        return str(newest_rpn(self.store)) if self.rpn is None else self.rpn

    @cache  # noqa: B019
    def pipeline(self) -> ZoomPipeline:
        """The RPN beside the model it was trained on, or beside ``model``."""
        return ZoomPipeline.from_checkpoint(
            self.checkpoint(),
            self.model,
            device=self.runtime.device,
            dtype=self.dtype,
            device_map=self.runtime.device_map,
            crop_tokens=self.crop_tokens,
            withdraw_image=self.withdraw_image,
        )


def draw_overlay(image: Image.Image, answer: ZoomAnswer, letterbox: Letterbox) -> Image.Image:
    """The image with its RoI map and the boxes that were zoomed into, pale outside the regions."""
    heated = draw_heat_map(image, answer.roi_map, letterbox, opacity=_HEAT_OPACITY)
    faded = fade_hidden(heated, answer.regions, image.size)
    return draw_boxes(faded, answer.boxes, image.size, _BOX_COLOUR)


def overlay_bytes(
    image: Image.Image, answer: ZoomAnswer, letterbox: Letterbox, suffix: str = ".png"
) -> bytes:
    """The picture of ``draw_overlay`` as a file whose name ends in ``suffix``."""
    return picture_bytes(draw_overlay(image, answer, letterbox), suffix)


def rounded_boxes(answer: ZoomAnswer) -> list[list[float]]:
    """Boxes to a tenth of a pixel."""
    return [rounded_box(box) for box in answer.boxes]


def shown_lines(answer: ZoomAnswer) -> list[str]:
    """Lines for a person: the answer, and where it was looked for."""
    text = shown_text(answer.text)
    if not answer.boxes:
        return [text, f"not zoomed: {answer.decision.value}"]
    return [text, *(f"zoomed into {shown_box(box)}" for box in answer.boxes)]

"""Settings of pseudo-label making and region selection, with the reference's as named presets."""

from typing import Self, TypeVar

from pydantic import Field, model_validator

from data_contracts.base import Settings


class LabelSettings(Settings):
    """How an attention map becomes foreground, background and ignore (method.md section 4)."""

    foreground_ratio_threshold: float = Field(0.2, gt=0, le=1)
    """Cells above this share of the map's maximum are foreground."""
    background_ratio_threshold: float = Field(0.1, ge=0, le=1)
    """Cells below this share of the maximum, outside the box, are background."""
    max_box_area_ratio: float = Field(0.5, gt=0, le=1)
    """Samples whose box covers at least this share of the grid are rejected."""
    sink_threshold: float | None = Field(1e-3, gt=0)
    """Cells with a sink signal at or above this are sinks; None keeps all cells."""
    mask_padding: bool = True
    """Letterbox padding is known background and never foreground."""
    box_blur_sigma: float | None = Field(None, gt=0)
    """Blur (3x3 Gaussian) of the foreground map before its box is taken; None takes it as is."""
    min_max_attention: float = Field(0.0, ge=0)
    """Samples whose strongest cell is below this are rejected."""

    @model_validator(mode="after")
    def _thresholds_are_ordered(self) -> Self:
        if self.background_ratio_threshold > self.foreground_ratio_threshold:
            raise ValueError(
                "background_ratio_threshold must not exceed foreground_ratio_threshold: a cell "
                "would be both background and foreground"
            )
        return self

    @classmethod
    def preset(cls, name: str) -> "LabelSettings":
        """Named settings: ``reference-llava``, ``reference-qwen`` or ``default``.

        Raises:
            ValueError: for any other name.
        """
        return _choose(LABEL_PRESETS, name, "label")


class RegionSettings(Settings):
    """How a RoI probability map becomes crop boxes (method.md section 6)."""

    blur_sigma: float | None = Field(1.0, gt=0)
    """Blur (3x3 Gaussian) before thresholding; None for none."""
    threshold_is_peak_ratio: bool = False
    """Threshold relative to the blurred map's maximum rather than absolute."""
    min_component_cells: int = Field(2, ge=1)
    """Components with fewer cells are dropped."""
    small_component_cells: int = Field(4, ge=1)
    """Components with fewer cells than this are grown to ``min_box_side`` cells a side."""
    min_box_side: int = Field(3, ge=1)
    max_component_ratio: float = Field(225 / 576, gt=0, le=1)
    """Components that cover a larger share of the grid are dropped."""
    max_regions: int = Field(2, ge=1)
    drop_all_above_max_regions: bool = False
    """With more regions than allowed: drop all (the reference) or keep the strongest."""
    single_box: bool = False
    """One box around all foreground instead of one per component (the reference's mask mode)."""

    @classmethod
    def preset(cls, name: str) -> "RegionSettings":
        """Named settings: ``reference-boxes`` or ``default``.

        Raises:
            ValueError: for any other name.
        """
        return _choose(REGION_PRESETS, name, "region")


T = TypeVar("T")

LABEL_PRESETS = {
    "reference-llava": LabelSettings(mask_padding=False, sink_threshold=1e-3),
    "reference-qwen": LabelSettings(
        mask_padding=True, sink_threshold=1e-2, box_blur_sigma=1.0, min_max_attention=5e-3
    ),
    "default": LabelSettings(),
}

REGION_PRESETS = {
    "reference-boxes": RegionSettings(drop_all_above_max_regions=True),
    "default": RegionSettings(min_component_cells=1, max_regions=1),
}


def _choose(presets: dict[str, T], name: str, noun: str) -> T:
    try:
        return presets[name]
    except KeyError:
        raise ValueError(f"no {noun} preset {name!r}; choose from {', '.join(presets)}") from None

"""Settings of pseudo-label making and region selection, with the reference's as named presets."""

from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from data_contracts.base import Changes, Settings


class _LabelFields(Settings):
    """The keys of label settings."""

    foreground_ratio_threshold: float = Field(0.2, gt=0, le=1)
    """Cells above this share of the map's maximum are foreground."""
    strongest_region_only: bool = False
    """Of several regions of foreground that do not touch, keep the one with the map's maximum and
    ignore the others: attention that hesitates between two places does not teach both."""
    max_rival_ratio: float | None = Field(None, gt=0, le=1)
    """Samples are rejected as ambiguous whose strongest foreground cell in another region than the
    maximum's has this share of the maximum, or more; None keeps them. Attention that hesitates
    between two places is often wrong about which one was asked for."""
    background_ratio_threshold: float = Field(0.1, ge=0, le=1)
    """Cells below this share of the maximum, outside the box, are background."""
    max_box_area_ratio: float = Field(0.5, gt=0, le=1)
    """Samples whose box covers at least this share of the content cells are rejected."""
    sink_threshold: float | None = Field(1e-3, gt=0)
    """Cells with a sink signal at or above this are sinks; None keeps all cells."""
    border_cells: int = Field(0, ge=0)
    """Cells this near to the grid's edge are sinks, whatever their signal."""
    mask_padding: bool = True
    """Letterbox padding is never foreground (needs the image sizes)."""
    padding_label: Literal["background", "ignore"] = "background"
    """What masked padding is trained as."""
    box_margin_cells: int = Field(0, ge=0)
    """Cells added to each side of the foreground's box, inside the grid. The reference's Qwen
    variant boxes a blurred map where it is above 0, which is exactly a margin of one."""
    reference_geometry: bool = False
    """Round content as the reference does, to whole cells of a padded square, and measure the box
    against the whole grid; otherwise content cells are exact and the box is measured against them.
    """
    min_max_attention: float = Field(0.0, ge=0)
    """Samples whose strongest cell is below this are rejected."""


class LabelSettings(_LabelFields):
    """How an attention map becomes foreground, background and ignore."""

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


class LabelChanges(_LabelFields, Changes):
    """Label settings that a run changes."""


class _RegionFields(Settings):
    """The keys of region settings."""

    blur_sigma: float | None = Field(1.0, gt=0)
    """Blur (3x3 Gaussian) before thresholding; None for none."""
    threshold_is_peak_ratio: bool = False
    """Threshold relative to the blurred map's maximum rather than absolute."""
    min_component_cells: int = Field(1, ge=1)
    """Components with fewer cells are dropped."""
    max_component_cells: int | None = Field(None, ge=1)
    """Components with more cells are dropped; None keeps them."""
    max_box_area_ratio: float | None = Field(0.5, gt=0, le=1)
    """Boxes that cover a larger share of the content cells, margin not counted, are dropped: they
    zoom into nothing."""
    min_box_side: int = Field(3, ge=1)
    """Shorter sides of a box are grown to this many cells."""
    small_component_cells: int | None = Field(None, ge=1)
    """Grow only the boxes of components with fewer cells than this; None grows every short side."""
    reference_growth: bool = False
    """Grow with the reference's arithmetic, which never reaches the last row and column."""
    margin_cells: float = Field(0.0, ge=0)
    """Added to each side of a box, in cells, inside the image. A region's edge lies anywhere in its
    outermost cells' reach: half a cell keeps what whole cells would cut off."""
    max_regions: int = Field(1, ge=1)
    """Most boxes returned."""
    drop_all_above_max_regions: bool = False
    """With more regions than allowed: drop all (the reference) or keep the strongest."""
    single_box: bool = False
    """One box around all components instead of one each (the reference's mask mode)."""
    mask_threshold_ratio: float | None = Field(None, gt=0, le=1)
    """Masked crops: of a crop, the decoder gets only the tokens that touch a cell above this share
    of the threshold, or its margin. None gives it the whole box."""
    crop_tokens: int | None = Field(None, ge=1)
    """Most tokens per crop, before it is masked; None gives each as many as the image has."""
    mask_tower: bool = False
    """Where crops are masked, the vision tower sees no more of them than the decoder gets. Cheaper,
    and not what the paper does; for families with one fixed grid and a token for each patch."""
    withdraw_image: bool = False
    """Where there is a crop, only the layers below the branch look at the image. Cheaper, and not
    what the paper does: see what it costs on a model before it is used there."""
    min_peak_probability: float | None = Field(None, ge=0, le=1)
    """Maps whose blurred peak is lower are not followed; None for no such rule. This rule and the
    two below are the gate's; ``propose_regions`` knows nothing of them."""
    min_peak_to_mean: float | None = Field(None, ge=1)
    """Maps whose blurred peak is fewer times their mean are not followed; None for no such rule."""
    max_seen_ratio: float | None = Field(None, gt=0)
    """Images that the model saw at this many of its own pixels per source pixel, or more, are not
    zoomed into; None for no such rule."""


class RegionSettings(_RegionFields):
    """How a RoI probability map becomes crop boxes, when no crop is worth its cost, and what of
    image and crops the second stage reads."""

    @model_validator(mode="after")
    def _some_component_may_be_kept(self) -> Self:
        most = self.max_component_cells
        if most is not None and self.min_component_cells > most:
            raise ValueError(
                "min_component_cells must not exceed max_component_cells: every component would be "
                "dropped"
            )
        return self

    @classmethod
    def preset(cls, name: str) -> "RegionSettings":
        """Named settings: ``reference-boxes``, ``reference-mask`` or ``default``.

        Raises:
            ValueError: for any other name.
        """
        return _choose(REGION_PRESETS, name, "region")

    def identity(self) -> dict[str, Any]:
        """Plain data for addresses and checkpoints.

        Keys of later versions are left out where they change nothing, so that what was made before
        is still found and still the same.
        """
        later = {
            "mask_threshold_ratio": None,
            "crop_tokens": None,
            "mask_tower": False,
            "withdraw_image": False,
        }
        unchanged = {key for key, value in later.items() if getattr(self, key) == value}
        return self.model_dump(mode="json", exclude=unchanged)

    def beyond(self, other: "RegionSettings") -> dict[str, Any]:
        """Plain data of the keys that differ from others'."""
        theirs = other.model_dump(mode="json")
        own = self.model_dump(mode="json")
        return {key: value for key, value in own.items() if value != theirs[key]}


class RegionChanges(_RegionFields, Changes):
    """Region settings that a run changes."""


T = TypeVar("T")

LABEL_PRESETS = {
    "reference-llava": LabelSettings(
        sink_threshold=1e-3, mask_padding=False, reference_geometry=True
    ),
    "reference-qwen": LabelSettings(
        sink_threshold=1e-2, box_margin_cells=1, min_max_attention=5e-3, reference_geometry=True
    ),
    "default": LabelSettings(),
}

REGION_PRESETS = {
    "reference-boxes": RegionSettings(
        min_component_cells=2,
        max_component_cells=225,
        max_box_area_ratio=None,
        small_component_cells=4,
        reference_growth=True,
        max_regions=2,
        drop_all_above_max_regions=True,
    ),
    "reference-mask": RegionSettings(
        single_box=True, max_box_area_ratio=None, min_box_side=1, mask_threshold_ratio=1.0
    ),
    "default": RegionSettings(
        threshold_is_peak_ratio=True,
        margin_cells=0.5,
        mask_threshold_ratio=1.0,
        # A zoom into nothing costs some time, a refused one the answer.
        min_peak_probability=0.01,
        min_peak_to_mean=1.5,
        max_seen_ratio=1.0,
    ),
}


def _choose(presets: dict[str, T], name: str, noun: str) -> T:
    try:
        return presets[name]
    except KeyError:
        raise ValueError(f"no {noun} preset {name!r}; choose from {', '.join(presets)}") from None

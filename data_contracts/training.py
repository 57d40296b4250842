"""Settings of RPN training."""

from typing import Annotated, Literal

from pydantic import Field

from data_contracts.base import Changes, Settings


class BceLoss(Settings):
    """Binary cross-entropy."""

    type: Literal["bce"] = "bce"


class FocalLoss(Settings):
    """Binary cross-entropy that dwells on cells the network gets wrong."""

    type: Literal["focal"] = "focal"
    alpha: float = Field(0.9, gt=0, lt=1)
    """Weight of foreground cells; background cells weigh one minus this."""
    gamma: float = Field(2.0, ge=1)


class MseLoss(Settings):
    """Squared difference between probability and label."""

    type: Literal["mse"] = "mse"


RoiLoss = Annotated[BceLoss | FocalLoss | MseLoss, Field(discriminator="type")]


_Beta = Annotated[float, Field(ge=0, lt=1)]

MAX_HELD_OUT = 2000
"""A rate measured on so many images has a standard error of about one percent; more would cost
passes through the frozen layers, and training would miss them."""


class _TrainingFields(Settings):
    """The keys of training settings."""

    num_epochs: int = Field(1, gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.98)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    loss: RoiLoss = BceLoss()
    validation_ratio: float = Field(0.1, gt=0, lt=1)
    """Share of images held out of training to choose the region threshold; 2,000 at most."""
    checkpoint_every: int = Field(50, gt=0)
    """Optimiser steps between resume points."""
    seed: int = 0


class TrainingConfig(_TrainingFields):
    """How an RPN is trained."""

    def num_held_out(self, num_images: int) -> int:
        """How many of some images are held out of training, at least one of two."""
        wanted = min(round(self.validation_ratio * num_images), MAX_HELD_OUT)
        return max(0, min(max(wanted, 1), num_images - 1))

    def about_num_steps(self, num_labelled: int) -> int:
        """Optimiser steps; not exact, as images are held out with all their questions."""
        num_trained = num_labelled - self.num_held_out(num_labelled)
        return self.num_epochs * max(1, num_trained // self.batch_size)


class TrainingChanges(_TrainingFields, Changes):
    """Training settings that a run changes."""


QWEN_TRAINING = TrainingConfig(batch_size=128, learning_rate=1e-4, betas=(0.9, 0.999))
"""The reference's for Qwen2.5-VL; families that are like it take it over."""

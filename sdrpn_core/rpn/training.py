"""RPN training: a loop over batches that knows nothing of storage.

The frozen prefix is run without gradients, the RPN is trained in float32 (under bfloat16 autocast
where the model itself is in half precision on a GPU). All results are a function of the examples,
the settings and the frozen model; how the work is cut up and interrupted does not enter.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from data_contracts.artifact import canonical_json
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import RpnShape
from data_contracts.training import TrainingConfig
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.devices import dtype_name
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.config import FORMAT_VERSION, RpnConfig, recipe_settings
from sdrpn_core.rpn.data import (
    DataSplit,
    ImageLoader,
    TrainingError,
    TrainingExample,
    epoch_batch,
    examples_digest,
    num_batches_per_epoch,
    split_examples,
)
from sdrpn_core.rpn.features import FrozenPrefix, collate
from sdrpn_core.rpn.loss import roi_loss
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.parameters import (
    load_parameters,
    network_state,
    weights_digest,
)
from sdrpn_core.rpn.resume import Progress, pack, unpack
from sdrpn_core.rpn.validation import ValidationPrediction, epoch_metrics, tune_scores

STAGE_VERSION = 5

Metrics = dict[str, Any]
SaveCheckpoint = Callable[[int, dict[str, bytes]], None]

log = logging.getLogger(__name__)


def train_rpn(
    adapter: ModelAdapter,
    examples: Iterable[TrainingExample],
    load_image: ImageLoader,
    config: TrainingConfig,
    *,
    shape: RpnShape,
    regions: RegionSettings,
    label_set: str,
    micro_batch_size: int,
    cache_bytes: int,
    resume: Mapping[str, bytes] | None = None,
    save_checkpoint: SaveCheckpoint | None = None,
    on_metrics: Callable[[Metrics], None] | None = None,
    trained: RpnCheckpoint | None = None,
) -> RpnCheckpoint:
    """Train an RPN on pseudo-labels and choose its region threshold.

    Args:
        adapter: the frozen model.
        examples: labelled questions, in any order; read once, and kept on disk.
        load_image: reads an image; called from several threads.
        config: recipe.
        shape: where the network branches off.
        regions: how maps will become boxes; the threshold is chosen for this.
        label_set: name of the label set, recorded in the checkpoint.
        micro_batch_size: examples per backward pass; batches are cut into parts of this size.
        cache_bytes: host memory for frozen features kept between epochs.
        resume: files of an earlier ``save_checkpoint`` call to go on from.
        save_checkpoint: called with (step, files) every ``config.checkpoint_every`` steps.
        on_metrics: called with every entry of the training log as it is made.
        trained: what the same call made for other regions; it takes no step then.

    Raises:
        CheckpointError: if ``trained`` is of another shape.
        TrainingError: if the examples cannot be trained on, the loss is not finite, or ``resume``
            belongs to another run.
    """
    split = split_examples(examples, config)
    prefix = FrozenPrefix(
        adapter, load_image, branch_layer=shape.branch_layer, cache_bytes=cache_bytes
    )
    trainer = _Trainer(adapter, prefix, split, config, shape, micro_batch_size, on_metrics)
    if trained is not None:
        trainer.take(trained)
        return trainer.finish(regions, label_set)
    identity = trainer.identity()
    if resume is not None:
        trainer.progress = unpack(resume, trainer.network, trainer.optimizer, identity)
        log.info("training goes on from step %d of %d", trainer.step, trainer.num_steps)
    else:
        trainer.progress = Progress(0, identity, ())
        trainer.report(trainer.validate(epoch=0))
    while trainer.step < trainer.num_steps:
        trainer.train_one_step()
        if save_checkpoint is not None and trainer.step % config.checkpoint_every == 0:
            save_checkpoint(
                trainer.step, pack(trainer.network, trainer.optimizer, trainer.progress)
            )
    return trainer.finish(regions, label_set)


def learning_rate(step: int, num_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to zero.

    Args:
        step: 0-based optimiser step.
        num_steps: length of the whole run.
        config: recipe.
    """
    num_warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / num_warmup
    done = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class _Trainer:
    """State of a run: network, optimiser, progress."""

    def __init__(
        self,
        adapter: ModelAdapter,
        prefix: FrozenPrefix,
        split: DataSplit,
        config: TrainingConfig,
        shape: RpnShape,
        micro_batch_size: int,
        on_metrics: Callable[[Metrics], None] | None,
    ) -> None:
        self.adapter = adapter
        self.prefix = prefix
        self.split = split
        self.config = config
        self.shape = shape
        self.micro_batch_size = micro_batch_size
        self.on_metrics = on_metrics
        self.network = RegionProposalNetwork.from_adapter(adapter, shape).set_precision(
            torch.float32
        )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.batches_per_epoch = num_batches_per_epoch(len(split.train), config.batch_size)
        self.num_steps = config.num_epochs * self.batches_per_epoch
        self.progress = Progress(0, "", ())

    def identity(self) -> str:
        """Digest of all that determines the course of training; call it before the first step."""
        plain = {
            "stage_version": STAGE_VERSION,
            "profile": self.adapter.profile.identity(),
            "dtype": dtype_name(self.adapter.dtype),
            "config": recipe_settings(self.config),
            "shape": self.shape.model_dump(mode="json"),
            "examples": examples_digest(chain(self.split.train, self.split.validation)),
            "weights": weights_digest(self.network),
        }
        return hashlib.sha256(canonical_json(plain).encode()).hexdigest()

    def take(self, trained: RpnCheckpoint) -> None:
        """Go on from the end of a finished training."""
        load_parameters(self.network, trained.state)  # float32 holds every saved value exactly
        self.progress = Progress(self.num_steps, "", trained.metrics)

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.progress.step

    def report(self, entry: Metrics, *, step: int | None = None) -> None:
        """Add an entry to the training log, and count a step where it is one."""
        self.progress = Progress(
            self.step if step is None else step,
            self.progress.identity,
            (*self.progress.metrics, entry),
        )
        if self.on_metrics is not None:
            self.on_metrics(entry)

    def train_one_step(self) -> None:
        """Run one batch, and validation where it ends an epoch."""
        epoch, place = divmod(self.step, self.batches_per_epoch)
        train, config = self.split.train, self.config
        batch = epoch_batch(len(train), config.batch_size, config.seed, epoch, place)
        entry = self._optimize([train[index] for index in batch])
        self.report({"kind": "step", "epoch": epoch + 1, **entry}, step=self.step + 1)
        if place == self.batches_per_epoch - 1:
            self.report(self.validate(epoch + 1))

    def _optimize(self, batch: Sequence[TrainingExample]) -> Metrics:
        rate = learning_rate(self.step, self.num_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        num_valid_cells = sum(example.num_valid_cells for example in batch)
        losses = []
        for part, found in self.prefix.of_parts(self._parts(batch)):
            features = collate(found, part)
            with self._autocast():
                logits = features.logits(self.network)
            part_loss = roi_loss(logits, features.labels, self.config.loss, num_valid_cells)
            part_loss.backward()  # type: ignore[no-untyped-call]
            losses.append(part_loss.detach())
        loss = sum(torch.stack(losses).tolist())  # a wait for each would hold up the part after it
        limit = self.config.max_grad_norm
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self.network.parameters(), math.inf if limit is None else limit
            )
        )
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {loss} and gradient norm {norm} at step {self.step + 1} are not finite: "
                "lower training.learning_rate"
            )
        self.optimizer.step()
        return {
            "step": self.step + 1,
            "num_steps": self.num_steps,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
        }

    def _parts(self, batch: Sequence[TrainingExample]) -> Iterator[Sequence[TrainingExample]]:
        """One by one: those of the whole validation would take much memory."""
        size = self.micro_batch_size
        return (batch[start : start + size] for start in range(0, len(batch), size))

    def _autocast(self) -> torch.autocast:
        # The CPU has no fast half precision: there the RPN computes in float32 throughout.
        # Once it is in the model's precision, it is used as it is.
        is_half = self.adapter.dtype != self.network.dtype and self.adapter.device.type == "cuda"
        return torch.autocast(self.adapter.device.type, torch.bfloat16, enabled=is_half)

    @torch.no_grad()
    def predict_validation(self) -> list[ValidationPrediction]:
        """RoI logits of every validation example.

        Raises:
            TrainingError: if one is not finite: the last step may have spoilt the weights.
        """
        predictions = []
        for part, features in self.prefix.of_parts(self._parts(self.split.validation)):
            with self._autocast():
                logits = collate(features, part).logits(self.network).cpu()
            if not logits.isfinite().all():
                raise TrainingError(
                    f"scores of validation images are not finite after step {self.step}: lower "
                    "training.learning_rate"
                )
            for row, item, example in zip(logits, features, part, strict=True):
                labels = torch.from_numpy(example.labels)
                shaped = row[: labels.numel()].view(labels.shape)
                predictions.append(
                    ValidationPrediction(example.image_key, shaped, labels, item.content)
                )
        return predictions

    def validate(self, epoch: int) -> Metrics:
        """Loss and cell quality on the validation images, at probability one half."""
        quality = epoch_metrics(self.predict_validation(), self.config.loss)
        return {"kind": "validation", "epoch": epoch, "step": self.step, **quality}

    def finish(self, regions: RegionSettings, label_set: str) -> RpnCheckpoint:
        """Choose the threshold with the weights as they will be used, and pack everything."""
        self.network.set_precision(self.adapter.dtype)
        tuned = tune_scores(self.predict_validation(), self.config.loss, regions)
        config = RpnConfig(
            format_version=FORMAT_VERSION,
            profile=self.adapter.profile.model_copy(update={"rpn": self.shape}),
            shape=self.shape,
            dtype=dtype_name(self.adapter.dtype),
            threshold=tuned.threshold,
            regions=regions,
            score_calibration=tuned.score_calibration,
            training=self.config,
            label_set=label_set,
            data=self.split.sizes,
            validation=tuned.summary,
            shares_experts=self.network.shares_experts,
        )
        return RpnCheckpoint(config, network_state(self.network), self.progress.metrics)

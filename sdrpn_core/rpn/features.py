"""The frozen prefix: hidden states at the branch layer, computed once where memory allows.

Every example goes through the frozen model by itself and unpadded. Its features then depend on
nothing else, so they are the same to the last bit whether cached or computed anew, whatever batch
they end up in; and at hundreds of image tokens a single example already fills the hardware.

Shape legend: N batch, L sequence, d hidden size, C image cells.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from data_contracts.enums import RoiLabel
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.prompts import Prompt
from sdrpn_core.rpn.data import FeatureKey, ImageLoader, TrainingError, TrainingExample
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.threads import BegunCalls

NUM_IMAGE_READERS = 4

Part = Sequence[TrainingExample]
"""Examples of one pass of the RPN."""


@dataclass(frozen=True)
class PrefixFeatures:
    """One example at the branch layer."""

    hidden: Tensor
    """(L, d) input of layer B."""
    position_ids: Tensor
    """(..., L)"""
    image_columns: Tensor
    """(C,)"""
    image_numbers: Tensor
    """(L,) 1 where a column holds a token of the image, else 0."""
    content: Tensor
    """(h, w) bool: cells that show any of the image, the others are padding; on the CPU."""

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        columns = (self.hidden, self.position_ids, self.image_columns, self.image_numbers)
        return sum(part.numel() * part.element_size() for part in (*columns, self.content))

    def to(self, device: torch.device) -> "PrefixFeatures":
        """The same features on another device."""
        return PrefixFeatures(
            hidden=self.hidden.to(device),
            position_ids=self.position_ids.to(device),
            image_columns=self.image_columns.to(device),
            image_numbers=self.image_numbers.to(device),
            content=self.content,
        )


@dataclass(frozen=True)
class _BegunPart:
    """A part whose images threads are reading."""

    part: Part
    missing: Sequence[TrainingExample]
    """Those whose features are not known, each once."""
    images: BegunCalls[PreparedImages]
    """Of the missing ones."""


class FrozenPrefix:
    """Features of examples by way of a cache of bounded size in host memory."""

    def __init__(
        self,
        adapter: ModelAdapter,
        load_image: ImageLoader,
        *,
        branch_layer: int,
        cache_bytes: int,
    ) -> None:
        self.adapter = adapter
        self.load_image = load_image
        self.branch_layer = branch_layer
        self.cache_bytes = cache_bytes
        self._cache: dict[FeatureKey, PrefixFeatures] = {}
        self._num_cached_bytes = 0

    def of_parts(
        self, parts: Iterable[Part]
    ) -> Generator[tuple[Part, list[PrefixFeatures]], None, None]:
        """Each part with the features of its examples, on the model's device.

        Images are read and prepared in threads, those of the next part while one is worked on.

        Raises:
            TrainingError: if labels were made for another grid than the model's.
        """
        todo = (self._begun(part) for part in parts)
        begun = deque(islice(todo, 1))
        try:
            while begun:
                begun.extend(islice(todo, 1))
                part = begun[0].part
                fresh = dict(self._computed(begun[0]))
                chosen = [
                    fresh.get(e.feature_key) or self._cache[e.feature_key].to(self.adapter.device)
                    for e in part
                ]
                for example, features in zip(part, chosen, strict=True):
                    _check_grid(example, features)
                yield part, chosen
                begun.popleft()
        finally:
            for left in begun:
                left.images.leave()

    def _begun(self, part: Part) -> _BegunPart:
        missing = {e.feature_key: e for e in part if e.feature_key not in self._cache}
        images = BegunCalls(self._prepare, missing.values(), NUM_IMAGE_READERS)
        return _BegunPart(part, tuple(missing.values()), images)

    def _prepare(self, example: TrainingExample) -> PreparedImages:
        return self.adapter.prepare_images([self.load_image(example)], for_labels=True)

    def _computed(self, begun: _BegunPart) -> Iterator[tuple[FeatureKey, PrefixFeatures]]:
        """Compute features of images as they are prepared, and cache what fits."""
        for example in begun.missing:
            (encoded,) = self.adapter.encode_prepared(begun.images.next_result())
            prompt = self.adapter.embed_prompt(example.question, [encoded])
            features = PrefixFeatures(
                hidden=self._hidden(prompt),
                position_ids=prompt.position_ids,
                image_columns=prompt.image_columns(),
                image_numbers=prompt.image_numbers,
                content=torch.from_numpy(encoded.letterbox.content_mask(encoded.grid)),
            )
            self._keep(example.feature_key, features)
            yield example.feature_key, features

    # Not inference mode: its tensors could not be saved for the RPN's backward pass.
    @torch.no_grad()
    def _hidden(self, prompt: Prompt) -> Tensor:
        inputs = DecoderInput(
            prompt.embeds[None],
            ColumnMasks(prompt.image_numbers[None]),
            position_ids=prompt.position_ids[..., None, :],
            deepstack=prompt.deepstack[:, None],
        )
        return self.adapter.decoder.run(inputs, range(self.branch_layer))[0]

    def _keep(self, key: FeatureKey, features: PrefixFeatures) -> None:
        is_new = key not in self._cache  # parts that follow each other may share an example
        if is_new and self._num_cached_bytes + features.num_bytes <= self.cache_bytes:
            self._cache[key] = features.to(torch.device("cpu"))
            self._num_cached_bytes += features.num_bytes


def _check_grid(example: TrainingExample, features: PrefixFeatures) -> None:
    if features.content.shape != example.labels.shape:
        raise TrainingError(
            f"question {example.question_id}: labels are {example.labels.shape}, the model's grid "
            f"is {tuple(features.content.shape)}: make labels with the same profile"
        )


@dataclass(frozen=True)
class FeatureBatch:
    """Examples padded on the right to a common length and number of cells."""

    hidden: Tensor
    """(N, L, d)"""
    position_ids: Tensor
    """(..., N, L)"""
    query_columns: Tensor
    """(N,)"""
    image_columns: Tensor
    """(N, C)"""
    image_numbers: Tensor
    """(N, L) as of each example."""
    labels: Tensor
    """(N, C) int64, on the host; cells that pad a smaller grid are ignored."""

    def logits(self, network: RegionProposalNetwork) -> Tensor:
        """(N, C) RoI logits. Padding needs no mask: no column sees text that follows it."""
        logits: Tensor = network(
            self.hidden,
            masks=ColumnMasks(self.image_numbers),
            position_ids=self.position_ids,
            query_columns=self.query_columns,
            image_columns=self.image_columns,
        )
        return logits


def collate(
    features: Sequence[PrefixFeatures], examples: Sequence[TrainingExample]
) -> FeatureBatch:
    """Stack features and labels."""
    device = features[0].hidden.device
    joined = partial(pad_sequence, batch_first=True)
    lengths = [len(item.hidden) for item in features]
    positions = [
        functional.pad(item.position_ids, (0, max(lengths) - length))
        for item, length in zip(features, lengths, strict=True)
    ]
    labels = [torch.from_numpy(e.labels.astype("int64")).flatten() for e in examples]
    return FeatureBatch(
        hidden=joined([item.hidden for item in features]),
        position_ids=torch.stack(positions, dim=-2),
        query_columns=torch.tensor(lengths, device=device) - 1,
        image_numbers=joined([item.image_numbers for item in features]),
        image_columns=joined([item.image_columns for item in features]),
        labels=joined(labels, padding_value=int(RoiLabel.IGNORE)),
    )

"""The zoom pipeline behind lmms-eval's model interface."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Never

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from data_contracts.errors import SdrpnError
from sdrpn_core.generation.greedy import answer_plain
from sdrpn_core.images import upright_rgb
from sdrpn_core.pipeline import ZoomPipeline

DEFAULT_MAX_NEW_TOKENS = 128
"""Where the task sets no length (TextVQA, HR-Bench)."""


class UnsupportedRequest(SdrpnError, NotImplementedError):
    """The task asks for something that the pipeline does not do."""


@dataclass(frozen=True)
class _Request:
    position: int
    prompt: str
    image: Image.Image
    settings: Mapping[str, Any]


class SdrpnModel(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """``--model_args model=...,rpn=...``.

    Args:
        rpn: directory of an RPN checkpoint.
        model: hub id or directory of the stock model; None takes what the RPN was trained on.
        zoom: False answers from the whole image alone: the baseline, with the same prompts.
        crop_tokens: most tokens per crop; None as the RPN was made for.
        withdraw_image: where there is a crop, only the layers below the branch look at the image;
            None as the RPN was made for.
        dtype: name of a torch dtype; None takes the RPN's own on a GPU, float32 on a CPU.
        max_new_tokens: most tokens per answer where the task sets none.
        batch_size: questions per forward pass; does not change the answers.
        device: torch device; None takes the process's own (under ``accelerate launch`` one each).
        max_batch_size: given by lmms-eval; not used.
    """

    is_simple = True

    def __init__(
        self,
        rpn: str,
        model: str | None = None,
        zoom: bool = True,
        crop_tokens: int | None = None,
        withdraw_image: bool | None = None,
        dtype: str | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        del max_batch_size
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UnsupportedRequest(f"batch size {batch_size!r}: give a number, 1 or more")
        self.batch_size = int(batch_size)
        self._zoom = zoom
        self._max_new_tokens = max_new_tokens
        self.pipeline = ZoomPipeline.from_pretrained(
            model,
            rpn,
            device=device or str(Accelerator().device),
            dtype=dtype,
            crop_tokens=crop_tokens,
            withdraw_image=withdraw_image,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval puts there what its processes tell each other."""
        return self.pipeline.adapter.device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answer every request, in order."""
        answers = [""] * len(requests)
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="sdrpn")
        for batch in self._batches(requests):
            texts = self._answer(batch)
            for request, text in zip(batch, texts, strict=True):
                answers[request.position] = _before_stop(text, request.settings.get("until", ()))
                key = (request.prompt, request.settings)
                self.cache_hook.add_partial("generate_until", key, answers[request.position])
            progress.update(len(batch))
        progress.close()
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> Never:
        """Not offered: lmms-eval's tasks of the eight benchmarks generate."""
        raise UnsupportedRequest("sdrpn generates answers; it does not rank given ones")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> Never:
        """Not offered."""
        raise UnsupportedRequest("sdrpn answers one question at a time, not conversations")

    def _answer(self, batch: Sequence[_Request]) -> list[str]:
        images = [request.image for request in batch]
        prompts = [request.prompt for request in batch]
        length = self._length(batch[0].settings)
        if self._zoom:
            found = self.pipeline.answer(
                images, prompts, max_new_tokens=length, batch_size=len(batch)
            )
            return [answer.text for answer in found]
        adapter = self.pipeline.adapter
        features = [[image] for image in adapter.encode_images(images)]
        return [a.text for a in answer_plain(adapter, prompts, features, max_new_tokens=length)]

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[_Request]]:
        """Consecutive requests of equal answer length; images are decoded batch by batch."""
        batch: list[_Request] = []
        for index, instance in enumerate(requests):
            prompt, settings, to_visual, document, task, split = instance.args
            _require_greedy(settings, task)
            is_other = bool(batch) and self._length(settings) != self._length(batch[0].settings)
            if is_other or len(batch) == self.batch_size:
                yield batch
                batch = []
            images = to_visual(self.task_dict[task][split][document])
            batch.append(_Request(index, prompt, _only(images, task), settings))
        if batch:
            yield batch

    def _length(self, settings: Mapping[str, Any]) -> int:
        return int(settings.get("max_new_tokens", self._max_new_tokens))


def _only(images: Sequence[Any], task: str) -> Image.Image:
    if len(images) != 1 or not isinstance(images[0], Image.Image):
        raise UnsupportedRequest(f"task {task!r}: sdrpn answers about one image, got {images!r}")
    return upright_rgb(images[0])  # as the zoom sees it, also where the image alone is asked about


def _require_greedy(settings: Mapping[str, Any], task: str) -> None:
    is_sampled = settings.get("do_sample") or (settings.get("temperature") or 0) > 0
    if is_sampled or (settings.get("num_beams") or 1) > 1:
        raise UnsupportedRequest(f"task {task!r}: sdrpn decodes greedily; got {dict(settings)}")


def _before_stop(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop else text
    return text

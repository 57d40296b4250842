"""What the zoom refuses: calls that ask nothing sensible, and numbers that mean nothing."""

from collections.abc import Sequence
from numbers import Integral

import torch
from PIL import Image

from data_contracts.wording import counted
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.devices import dtype_name
from sdrpn_core.models.errors import ModelError
from sdrpn_core.source_paths import is_unicode


def question_refusal(adapter: ModelAdapter, question: str) -> str | None:
    """Why a model cannot be asked a question, said after what it is called; None if it can."""
    if adapter.holds_placeholder(question):
        return f"contains the image placeholder: {question!r}"
    return None


def checked_images(
    adapter: ModelAdapter,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
) -> list[Image.Image]:
    """The images, each taken out of its sequence once: ``id`` tells them apart from here on.

    Raises:
        ModelError: if a question contains the model's image placeholder.
        ValueError: saying what to give instead, and at which index.
    """
    numbers: dict[str, object] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    for name, number in numbers.items():
        if not isinstance(number, Integral):
            raise ValueError(f"{name} is {number!r}: give a whole number")
        if number < 1:
            raise ValueError(f"{name} is {number}: give at least 1")
    if isinstance(questions, str):
        raise ValueError("questions is one text: give a list, with one question for each image")
    if isinstance(images, Image.Image):
        raise ValueError("images is one picture: give a list, with one image for each question")
    if len(images) != len(questions):
        raise ValueError(
            f"{counted(len(images), 'image')} for {counted(len(questions), 'question')}"
        )
    taken = list(images)
    for index, (image, question) in enumerate(zip(taken, questions, strict=True)):
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"image {index} is a {type(image).__name__}: give PIL images, as Image.open(path) "
                "or Image.fromarray(pixels) return them"
            )
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question {index} is {question!r}: give a text that asks something")
        if not is_unicode(question):
            raise ValueError(f"question {index} is {question!r}, which is not valid Unicode")
        if refusal := question_refusal(adapter, question):
            which = f"question {index}" if len(questions) > 1 else "the question"
            raise ModelError(f"{which} {refusal}")
    return taken


def require_finite(
    what: str,
    are_finite: Sequence[bool],
    dtype: torch.dtype,
    indices: Sequence[int],
    questions: Sequence[str],
) -> None:
    """Refuse a batch's numbers, naming the first of its questions whose are not finite.

    Args:
        what: the numbers' name in the message.
        are_finite: one truth per question of the batch.
        dtype: what the model computes in.
        indices: place of each question of the batch in the call.
        questions: all of the call.

    Raises:
        ModelError: saying what to do about it.
    """
    if not all(are_finite):
        which = f"question {indices[are_finite.index(False)]}: " if len(questions) > 1 else ""
        raise ModelError(f"{which}{_not_finite(what, dtype)}")


def _not_finite(what: str, dtype: torch.dtype) -> str:
    told = f"the {what} is not finite in {dtype_name(dtype)}"
    if dtype == torch.float16:
        return f"{told}, whose range is small: load the model in bfloat16 or float32"
    return (
        f"{told}: weights of the model or of the RPN are damaged; fetch the model anew, or train "
        "the RPN again (`sdrpn stage train-rpn --force`)"
    )

"""``sdrpn predict``: questions about images, with the zoom."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_contracts.settings_files import ConfigError
from data_contracts.wording import counted
from flows.cli_base import (
    BatchSizeOption,
    DeviceOption,
    ModelOption,
    RpnOption,
    RuntimeOption,
    StoreOption,
    err,
    interruptible,
    loading,
    out,
    runtime_settings,
    say,
)
from flows.output_files import at_home, check_file, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tasks.artifacts.store import ArtifactStore
    from tasks.asked_questions import Asked
    from tasks.predict import PredictSetup

OutputOption = Annotated[
    str | None,
    typer.Option(
        help="File for many answers (JSON Lines). If stopped, give the same command again."
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Precision of the model: float32, bfloat16 or float16.",
        show_default="float32 on a CPU, the RPN's own on a GPU",
    ),
]
CropTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Most tokens per crop: fewer are cheaper, and coarser.",
        show_default="the RPN's own",
    ),
]
WithdrawOption = Annotated[
    bool | None,
    typer.Option(
        "--withdraw-image/--keep-image",
        help="Whether upper layers see the crop only, or the image too.",
        show_default="the RPN's own",
    ),
]

_REFUSED = 3
"""Exit status where answers are written, but not to every question."""


def predict(
    image: Annotated[
        str,
        typer.Argument(
            help="Path or URI of an image; for many, a pattern ('photos/*.jpg') or a .jsonl file.",
            show_default=False,
        ),
    ],
    question: Annotated[
        str | None, typer.Argument(help="What to ask; not with a .jsonl.", show_default=False)
    ] = None,
    rpn: RpnOption = None,
    model: ModelOption = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Draw map and boxes over the image, into this file; a folder for many.",
            callback=at_home,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: OutputOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per answer.")] = 32,
    crop_tokens: CropTokensOption = None,
    withdraw_image: WithdrawOption = None,
    dtype: PrecisionOption = None,
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
) -> None:
    """Ask about images, zooming in where the RPN finds something.

    One image and one question print the answer. A pattern asks the question about every image it
    finds; a .jsonl has lines {"image": ..., "question": ...}. The exit status is 3 if some of many
    questions could not be answered; all others are written.
    """
    how = runtime_settings(runtime, store=store, device=device, batch_size=batch_size)
    with loading():
        from tasks.artifacts.device_memory import device_memory_explained
        from tasks.artifacts.store import ArtifactStore
        from tasks.asked_questions import is_many
    where = ArtifactStore.of(how)

    def setup() -> "PredictSetup":
        # Late, as torch and transformers take seconds: wrong files are refused before.
        with loading():
            from tasks.predict import PredictSetup
        with err.status("loading the model"):
            return PredictSetup(where, how, rpn, model, crop_tokens, withdraw_image, dtype)

    alone = how.model_copy(update={"batch_size": 1})  # larger batches are made smaller
    if is_many(image):
        asked, output = _checked_many(where, image, question, output, overlay, as_json)
        with device_memory_explained(alone):
            _predict_many(setup(), asked, output, overlay, max_new_tokens, how.batch_size)
        return
    question = _checked_one(image, question, output, overlay)
    with device_memory_explained(alone):
        _predict_one(where, setup, image, question, overlay, max_new_tokens, as_json)


def _checked_many(
    store: "ArtifactStore",
    image: str,
    question: str | None,
    output: str | None,
    overlay: Path | None,
    as_json: bool,
) -> tuple[list["Asked"], str]:
    """What is to be asked, and where answers go."""
    from tasks.asked_questions import read_asked
    from tasks.predict_files import check_outputs

    if output is None:
        raise ConfigError("many answers need --output FILE.jsonl, to go on if it is stopped")
    if as_json:
        raise ConfigError("--json is for one question: --output writes JSON lines as it is")
    asked = read_asked(store, image, question)
    check_outputs(store, output, overlay, asked)
    return asked, output


def _checked_one(image: str, question: str | None, output: str | None, overlay: Path | None) -> str:
    """What is to be asked."""
    from tasks.asked_questions import check_question
    from tasks.predict_files import check_picture_name

    if question is None or not question.strip():
        raise ConfigError("give a QUESTION to ask about the image, or many in a .jsonl file")
    check_question(question)
    if output is not None:
        raise ConfigError("--output is for many questions: use --json, or a .jsonl of questions")
    if overlay is not None:
        check_file(overlay, "--overlay")
        check_picture_name(overlay, image)
    return question


def _predict_many(
    setup: "PredictSetup",
    asked: "Sequence[Asked]",
    output: str,
    overlay: Path | None,
    max_new_tokens: int,
    batch_size: int,
) -> None:
    from flows.console import ProgressDisplay
    from tasks.answer_files import PARTS_SUFFIX
    from tasks.predict_many import answer_many, rpn_digest

    _tell_rpn(setup)
    kept = (
        f"what is answered is kept in {output}{PARTS_SUFFIX}; the same command goes on from there "
        f"and writes {output} when all are there"
    )
    with interruptible(kept), ProgressDisplay(err) as display:
        display.show("answering", 0, None, unit="")
        done = answer_many(
            setup.pipeline(),
            setup.store,
            asked,
            output,
            rpn=rpn_digest(setup.checkpoint()),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            overlays=None if overlay is None else str(overlay),
            on_part=partial(display.show, "answering", unit="questions"),
        )
    say(
        f"{counted(done.num_questions, 'question')}, {done.num_refused} refused, "
        f"{done.num_reused} answered before: {output}"
    )
    if done.num_refused:
        say('refused questions have an "error" in their row; the same command asks them again', err)
        raise typer.Exit(_REFUSED)


def _tell_rpn(setup: "PredictSetup") -> None:
    """Say which RPN answers: the newest of a store need not be the one that was meant."""
    facts = f"{setup.rpn_name()}, {setup.checkpoint().config.origin}"
    say(f"RPN: {facts}", err)


def _predict_one(
    store: "ArtifactStore",
    make_setup: "Callable[[], PredictSetup]",
    image: str,
    question: str,
    overlay: Path | None,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    from tasks.predict_files import read_image

    picture = read_image(store, image)  # before the seconds of what follows
    setup = make_setup()
    from tasks.predict import overlay_bytes, rounded_boxes, shown_lines
    from tasks.shown_answers import ASK_AS_TAUGHT

    _tell_rpn(setup)
    pipeline = setup.pipeline()
    (answer,) = pipeline.answer([picture], [question], max_new_tokens=max_new_tokens)
    if as_json:
        plain = {
            "answer": answer.text,
            "boxes": rounded_boxes(answer),
            "used_crop": answer.used_crop,
            "decision": answer.decision.value,
            "seconds": {phase: round(spent, 4) for phase, spent in answer.seconds.items()},
        }
        out.print_json(json.dumps(plain))
    else:
        text, *notes = shown_lines(answer)
        say(text)
        for note in notes:
            say(note, style="dim")
    if not answer.text.strip():
        say(f"the model answers nothing: {ASK_AS_TAUGHT}", err)
    if overlay is not None:
        letterbox = pipeline.adapter.letterbox(picture.size)
        write_file(overlay, overlay_bytes(picture, answer, letterbox, overlay.suffix))
        say(f"picture: {overlay}", err)

"""``sdrpn attention``: what a model's own answer looks at, before there is an RPN."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_contracts.configs import ModelConfig, Precision
from data_contracts.enums import QuestionKind
from data_contracts.profiles import UncalibratedProfile
from data_contracts.settings_files import ConfigError
from flows.cli_base import (
    DeviceOption,
    RuntimeOption,
    StoreOption,
    err,
    loading,
    out,
    runtime_settings,
    say,
)
from flows.output_files import file_option, write_file

if TYPE_CHECKING:
    from tasks.attention_view import AttentionView


def attention(
    image: Annotated[str, typer.Argument(help="Path or URI of an image.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    profile: Annotated[
        str, typer.Option(help="Profile of the model: a packaged name, or a YAML file.")
    ] = "reference",
    heads: Annotated[
        list[str] | None,
        typer.Option(
            help="Other heads than the profile's: 14:3,24 for two heads of layer 14, 14 for all of "
            "its heads. Give it again for more layers. The profile's sink rule is then left out.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        QuestionKind, typer.Option(help="Kind of question; chooses among the profile's heads.")
    ] = QuestionKind.TEXTUAL,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Draw attention and pseudo-label over the image, into this file.",
            callback=file_option,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the map.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    dtype: Annotated[Precision, typer.Option(help="Precision of the model.")] = "float32",
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
) -> None:
    """Show what the frozen model's answer attends to, and the pseudo-label that it gives.

    Needs no RPN and no run: this is what a run would extract. With --kind natural, some profiles
    ask for boxes instead of an answer, as runs do.
    """
    if not question.strip():
        raise ConfigError("give a QUESTION to ask about the image")
    how = runtime_settings(runtime, store=store, device=device)
    with loading():
        from tasks.artifacts.device_memory import device_memory_explained
        from tasks.artifacts.store import ArtifactStore
        from tasks.asked_questions import check_question
        from tasks.attention_view import view_attention
        from tasks.models import adapter_for
        from tasks.predict_files import check_picture_name, picture_bytes, read_image
    check_question(question)
    if overlay is not None:
        check_picture_name(overlay, image)
    model = _model(profile, dtype, kind, heads)
    picture = read_image(ArtifactStore.of(how), image)
    with device_memory_explained(how.model_copy(update={"batch_size": 1})):
        with err.status("loading the model"):
            adapter = adapter_for(model, how)
        view = view_attention(adapter, picture, question, kind, max_new_tokens=max_new_tokens)
    _print(view, as_json)
    if overlay is not None:
        write_file(overlay, picture_bytes(view.draw(picture), overlay.suffix))
        say(f"picture: {overlay}", err)


def _model(
    profile: str, dtype: Precision, kind: QuestionKind, heads: list[str] | None
) -> ModelConfig:
    """The model with a profile that has heads for the kind; nothing is fetched yet."""
    from tasks.attention_view import with_heads
    from tasks.models import profile_of

    model = ModelConfig(profile=profile, dtype=dtype)
    chosen = profile_of(model)
    if heads:
        chosen = with_heads(chosen, kind, heads)
    try:
        chosen.heads_for(kind)
    except UncalibratedProfile as error:
        raise UncalibratedProfile(f"{error}; or look at heads of your choice: --heads") from None
    return model.model_copy(update={"profile": chosen})


def _print(view: "AttentionView", as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(view.as_json()), indent=None)
        return
    answer, *notes = view.lines()
    say(answer)
    for note in notes:
        say(note, style="dim")

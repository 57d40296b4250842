"""``sdrpn predict``: one question about one image, with the zoom."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_base import DeviceOption, RuntimeOption, StoreOption, err, out, runtime_settings


def predict(
    image: Annotated[str, typer.Argument(help="Path or URI of the image.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    rpn: Annotated[
        str | None,
        typer.Option(help="RPN: a folder, or train-rpn/<id>; the store's newest unless given."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub id or folder; what the RPN was trained on unless given.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Write the image with its RoI map and boxes here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    store: StoreOption = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
) -> None:
    """Ask one question about one image, zooming in where the RPN finds something."""
    how = runtime_settings(runtime, store=store, device=device)
    with err.status("loading"):
        from tasks.artifact_store import ArtifactStore
        from tasks.predict import answer_one, draw_overlay, load_pipeline, read_image

        artifacts = ArtifactStore(how.store, how.storage_options)
        picture = read_image(artifacts, image)
        pipeline = load_pipeline(artifacts, rpn, model, how.device)
    answer = answer_one(pipeline, picture, question)
    if overlay is not None:
        letterbox = pipeline.adapter.letterbox(picture.size)
        draw_overlay(picture, answer, letterbox).save(overlay)
    if as_json:
        out.print_json(
            json.dumps(
                {
                    "answer": answer.text,
                    "boxes": [[round(side, 1) for side in box] for box in answer.boxes],
                    "used_crop": answer.used_crop,
                    "seconds": answer.seconds,
                }
            )
        )
        return
    out.print(answer.text, highlight=False)
    for box in answer.boxes:
        corners = ", ".join(f"{side:.0f}" for side in box)
        out.print(f"zoomed into ({corners})", style="dim", highlight=False)

"""``sdrpn calibrate``: the profile of a model that has none."""

from pathlib import Path
from typing import Annotated, Any

import typer

from data_contracts.calibration import LEAST_SCENES, CalibrationMethod, CalibrationSettings
from data_contracts.settings_files import load_settings
from flows.cli_base import DeviceOption, err, interruptible, loading, out, say
from flows.output_files import new_folder_option

_BATCH_SIZE = 16
_STUDY = {"exhaustive_heads": 3, "planted_sinks": True}

MethodOption = Annotated[
    CalibrationMethod | None,
    typer.Option(
        help="How heads are chosen: by the scenes' boxes, or unsupervised, by attention alone.",
        show_default="boxes",
    ),
]
StudyOption = Annotated[
    bool,
    typer.Option(
        "--study",
        help="Also try all sets of up to 3 heads, and sink rules on planted sinks "
        "(small models only).",
    ),
]


def calibrate(
    model: Annotated[
        str,
        typer.Option(help="Hub id, folder, or the name of a packaged profile.", show_default=False),
    ],
    folder: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder for profile and evidence.",
            show_default=False,
            callback=new_folder_option,
        ),
    ],
    num_scenes: Annotated[
        int | None,
        typer.Option(
            "--scenes",
            min=LEAST_SCENES,
            help="How many scenes to show the model.",
            show_default="300",
        ),
    ] = None,
    method: MethodOption = None,
    study: StudyOption = False,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="YAML file of CalibrationSettings.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name for the profile.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Prompt, with {images} and {question} in it.", show_default="the family's"
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    device: DeviceOption = None,
    dtype: Annotated[
        str, typer.Option(help="Precision of the model: float32, bfloat16 or float16.")
    ] = "float32",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Questions per forward pass.")
    ] = _BATCH_SIZE,
) -> None:
    """Find a model's grounding heads, sink rule, thresholds and branch layer on generated scenes.

    Look at calibration.html first. profile.yaml is the profile: give its path to --profile, or as
    model.profile in a configuration.
    """
    options = {"num_scenes": num_scenes, "method": method, **(_STUDY if study else {})}
    settings = _settings(settings_file, options)
    with loading():
        from flows.console import print_table
        from tasks.calibrate import PAGE_NAME, PROFILE_NAME, CalibrationModel, calibrate_model
    chosen = CalibrationModel(
        model_id=model,
        name=name,
        prompt=prompt,
        revision=revision,
        device=device or "auto",
        dtype=dtype,
        batch_size=batch_size,
    )
    with interruptible("nothing is kept, as the files are written at the end"):
        found = calibrate_model(chosen, settings, folder, lambda line: say(line, err, style="dim"))
    for title, rows in found.items():
        print_table(out, title, rows)
    say(f"profile: {folder / PROFILE_NAME}")
    say(f"evidence: {folder / PAGE_NAME}")


def _settings(file: Path | None, options: dict[str, Any]) -> CalibrationSettings:
    """Settings of the file, then what options say."""
    known = CalibrationSettings() if file is None else load_settings(CalibrationSettings, file)
    given = {name: value for name, value in options.items() if value is not None}
    return known.with_changes(**given)

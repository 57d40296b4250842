"""Stage ``calibrate``: the profile of a model that nobody has calibrated, found on generated
scenes; and ``sdrpn calibrate``, which writes the same files into a folder."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.calibration import CalibrationSettings
from data_contracts.configs import ModelConfig
from data_contracts.enums import QuestionKind, Stage
from data_contracts.profiles import ModelProfile, UncalibratedProfile
from data_contracts.settings_files import parse_settings
from sdrpn_core.calibration import (
    CalibrationError,
    CalibrationObserver,
    CalibrationResult,
    ComparedBranches,
    calibrate,
    draft_profile,
    scene_examples,
)
from sdrpn_core.calibration.page import render_markdown, render_page
from sdrpn_core.calibration.profile_file import profile_yaml
from sdrpn_core.calibration.tables import MEASURES, Rows, tables
from sdrpn_core.models.devices import resolve_device, resolve_dtype
from sdrpn_core.models.loading import load_adapter
from tasks import recipes
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.models import adapter_for_labels, found_anywhere, model_identity, profile_of
from tasks.work_progress import WorkProgress, run_working_stage

log = logging.getLogger(__name__)

PROFILE_NAME, EVIDENCE_NAME, HEADS_NAME, MARKDOWN_NAME, PAGE_NAME = recipes.CALIBRATION_FILES
_FOUND, _BRANCHES = "result.json", "branches.json"
"""Resume points: branch layers compared so far, and at last the whole result."""
_DOUBTFUL_PRECISION = 0.5
COMMENT = (
    "Found by calibration on generated scenes, see `source`; run it again rather than editing "
    "heads, sinks or thresholds by hand."
)


def calibrate_profile(
    run: StageRun, model: ModelConfig, settings: CalibrationSettings
) -> ArtifactRef:
    """Find what the model's profile does not say; the model is at one commit already.

    Raises:
        ScenesUnavailable: before the model is loaded, if scenes cannot be generated here.
        CalibrationError: if the model's answers show nothing.
    """
    recipe = recipes.calibration_recipe(profile_of(model), model_identity(model), settings)
    return run_working_stage(
        run,
        Stage.CALIBRATE,
        recipe,
        recipes.CALIBRATION_FILES,
        lambda progress: _files(_found(run, recipe, model, settings, progress)),
    )


def calibrated(
    store: ArtifactStore,
    model: ModelConfig,
    calibration: ArtifactRef,
    kinds: Iterable[QuestionKind],
) -> ModelConfig:
    """The model with the profile that was found for it, written out: workers need no file.

    Raises:
        UncalibratedProfile: if it has no heads for a kind of question that is going to be asked.
    """
    uri = store.file_uri(calibration, PROFILE_NAME)
    text = store.read_file(calibration, PROFILE_NAME)
    profile = parse_settings(ModelProfile, yaml.safe_load(text), uri)
    if missing := sorted(set(kinds) - set(profile.heads)):
        raise UncalibratedProfile(
            f"calibration found no heads for {missing[0].value} questions, see "
            f"{page_uri(store, calibration)}: change the configuration's `calibration`, or, if no "
            "such questions are asked, its `records.datasets`"
        )
    # Another run may have found it: how an RPN is trained and asked is no part of its address.
    own = profile_of(model)
    beside = {"training": own.training, "regions": own.regions}
    return model.model_copy(update={"profile": profile.model_copy(update=beside)})


def page_uri(store: ArtifactStore, calibration: ArtifactRef) -> str:
    """Where to open the findings."""
    return store.file_uri(calibration, PAGE_NAME)


@dataclass(frozen=True)
class CalibrationModel:
    """Which model to calibrate, and how to run it."""

    model_id: str
    """Hub id, directory, or the name of a packaged profile."""
    name: str | None = None
    prompt: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int = 16


def calibrate_model(
    model: CalibrationModel,
    settings: CalibrationSettings,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Rows]:
    """Calibrate, write the files of ``CALIBRATION_FILES`` into the folder, and return the findings
    as tables."""
    resolve_dtype(model.dtype)
    resolve_device(model.device)  # or a folder would be left behind
    draft = found_anywhere(
        draft_profile(model.model_id, name=model.name, prompt=model.prompt, revision=model.revision)
    )
    if model.prompt is None:  # chat templates differ within a family, and a foreign one costs hours
        say(f"asked as {draft.prompt!r}; if its chat template is another, give --prompt")
    examples = list(scene_examples(settings))
    _make(folder)
    adapter = load_adapter(draft, device=model.device, dtype=model.dtype)
    result = calibrate(
        adapter,
        examples,
        settings,
        batch_size=model.batch_size,
        source=_source(draft.model_id, settings),
        observer=CalibrationObserver(report=say),
    )
    for name, data in _files(result).items():
        (folder / name).write_bytes(data)
    _warn(result)
    say(MEASURES)
    return tables(result)


def _found(
    run: StageRun,
    recipe: Recipe,
    model: ModelConfig,
    settings: CalibrationSettings,
    progress: WorkProgress,
) -> CalibrationResult:
    """What calibration finds, or found before it was stopped: all files are made of one result."""
    writer = run.store.writer(recipe)
    _, kept = writer.latest_checkpoint() or (0, {})
    if _FOUND in kept:
        return CalibrationResult.model_validate_json(kept[_FOUND])
    examples = list(scene_examples(settings))
    result = calibrate(
        adapter_for_labels(model, run.runtime),
        examples,
        settings,
        batch_size=run.runtime.batch_size,
        source=_source(profile_of(model).model_id, settings),
        earlier=ComparedBranches.model_validate_json(kept[_BRANCHES]) if kept else None,
        observer=CalibrationObserver(
            report=log.info,
            on_progress=progress.of_work,
            on_branches=lambda compared: writer.save_checkpoint(
                len(compared.scores), {_BRANCHES: compared.model_dump_json().encode()}
            ),
        ),
    )
    found = {_FOUND: result.model_dump_json().encode()}
    writer.save_checkpoint(settings.num_branch_candidates + 1, found)
    _warn(result)
    return result


def _warn(result: CalibrationResult) -> None:
    precision = result.evidence.overall_quality.centre_precision
    if precision < _DOUBTFUL_PRECISION:
        log.warning(
            "calibration of %s: only %.2f of the cells that labels call foreground on unseen "
            "scenes are inside the true boxes; look at %s before you trust labels made so",
            result.profile.model_id,
            precision,
            PAGE_NAME,
        )


def _source(model_id: str, settings: CalibrationSettings) -> str:
    """Where a profile's values come from, in words."""
    by = "true boxes" if settings.method == "boxes" else "attention alone"
    return (
        f"calibration of {model_id} by {by}: {settings.num_scenes} generated scenes "
        f"from seed {settings.seed}, up to {settings.questions_per_scene} questions each"
    )


def _make(folder: Path) -> None:
    """Before the work: a folder that cannot be made should not be found out about after hours."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrationError(
            f"--out {folder}: cannot be made ({error.strerror}); choose another folder"
        ) from error


def _files(result: CalibrationResult) -> dict[str, bytes]:
    texts = {
        PROFILE_NAME: profile_yaml(result.profile, COMMENT),
        EVIDENCE_NAME: result.evidence.model_dump_json(indent=1) + "\n",
        HEADS_NAME: result.heat_map(),
        MARKDOWN_NAME: render_markdown(result),
        PAGE_NAME: render_page(result),
    }
    return {name: text.encode() for name, text in texts.items()}

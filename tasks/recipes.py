"""Which recipe each stage follows: every decision about artifact identity, and nothing else.

Pure functions of settings and of the manifests of the inputs. A setting that cannot change the
bytes (batch sizes, rows per shard beyond the number of shards, failure limits) is left out, so that
changing it recomputes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_contracts.artifact import ArtifactRef, Manifest, Recipe
from data_contracts.calibration import CalibrationSettings
from data_contracts.configs import EvaluationConfig, ExtractionConfig, RecordsConfig
from data_contracts.enums import Stage
from data_contracts.interop import PublishedLabels
from data_contracts.label_settings import LabelSettings, RegionSettings
from data_contracts.profiles import ModelProfile
from data_contracts.registry import SchemaId
from data_contracts.sources import BenchmarkSource, SceneSource, Selection
from data_contracts.training import TrainingConfig
from sdrpn_core import calibration, pseudo_labels, records
from sdrpn_core.benchmarks.tasks import TASKS
from sdrpn_core.evaluation import harness
from sdrpn_core.extraction import generated_answers
from sdrpn_core.interop import published_labels
from sdrpn_core.rpn import training
from sdrpn_core.rpn.checkpoint_files import CARD, CONFIG, METRICS, WEIGHTS
from sdrpn_core.rpn.config import recipe_settings
from tasks.shard_statistics import NUM_RECORDS, datasets_of, num_usable

DOWNLOAD_VERSION = 2
SCENES_VERSION = 1
"""Raise when the generator of scenes writes other files for the same settings."""
BENCHMARK_FILES_VERSION = 1
"""Raise when the same Parquet files give other questions."""
MERGE_VERSION = 2
RESULTS_VERSION = 5
TABLE_VERSION = 2
REPORT_VERSION = 13
IMAGES_PER_SHARD = 256

CALIBRATION_FILES = (
    "profile.yaml",
    "evidence.json",
    "heads.svg",
    "calibration.md",
    "calibration.html",
)
RESULTS_FILES = ("results.json", "speed.json", "documents.parquet")
TABLE_FILES = ("table.json", "table.md", "table.html", "table.tex")
CHECKPOINT_FILES = (WEIGHTS, CONFIG, CARD, METRICS)

ONCE_GATED_BY_AREA = {"internvl", "gemma3"}
"""Families whose canvases are stretched: squeezed ones were taken for seen whole."""

NEVER_ANSWERED_AT_ONCE = {"idefics3", "janus", "llava", "llava_next", "smolvlm"}
"""Families whose given answers never lacked the space that chat templates have after a colon:
LLaVA's tokenizer begins every text with one, the others came later."""


_LIMITS = {"rows_per_shard", "max_failure_rate", "tolerated_failures"}
"""Of ``RecordsConfig``: what decides whether rows are made, not which."""


def calibration_recipe(
    profile: ModelProfile, model: Mapping[str, Any], settings: CalibrationSettings
) -> Recipe:
    """A calibrated profile and its evidence: the files of ``CALIBRATION_FILES``.

    Args:
        profile: the uncalibrated one, which the calibrated one takes everything else from.
        model: identity of the frozen model.
        settings: of the calibration.
    """
    return Recipe(
        stage=Stage.CALIBRATE,
        stage_version=calibration.STAGE_VERSION,
        schema_id=SchemaId.FILES,
        config={
            "model": dict(model),
            "profile": {k: v for k, v in profile.identity().items() if k != "source"},
            "settings": settings.model_dump(mode="json"),
            "generator": SCENES_VERSION,
        },
        num_shards=len(CALIBRATION_FILES),
    )


def download_recipe(identity: Mapping[str, Any], num_images: int) -> Recipe:
    """Shard 0 holds the mix file and the true boxes, the others images.

    Args:
        identity: all that the source's bytes depend on.
        num_images: different images that the records name.
    """
    return Recipe(
        stage=Stage.DOWNLOAD,
        stage_version=DOWNLOAD_VERSION,
        schema_id=SchemaId.SOURCE_FILE,
        config=dict(identity),
        num_shards=1 + _num_shards(num_images, IMAGES_PER_SHARD),
    )


def scenes_recipe(source: SceneSource) -> Recipe:
    """Generated scenes depend on their settings alone, whatever they are called."""
    settings = source.model_dump(mode="json", exclude={"name"})
    return download_recipe({**settings, "generator": SCENES_VERSION}, source.num_images)


def benchmark_recipe(identity: Mapping[str, Any], source: BenchmarkSource) -> Recipe:
    """A public benchmark; how many rows it has is known before its files are read."""
    num_documents = TASKS[source.task].num_documents
    return download_recipe(
        {**identity, "writer": BENCHMARK_FILES_VERSION},
        min(num_documents, source.max_documents or num_documents),
    )


def records_recipe(
    files: Manifest, source_name: str, selection: Selection, settings: RecordsConfig
) -> Recipe:
    """Questions of one source, spread evenly over shards."""
    config = settings.model_dump(mode="json", exclude=_LIMITS)
    if selection.part == "all":
        selection = Selection(folders=selection.folders, repeats=selection.repeats)  # no draw
    num_records = int(files.statistics[NUM_RECORDS])
    num_rows = min(num_records, settings.max_records or num_records)
    return Recipe(
        stage=Stage.BUILD_JSONL,
        stage_version=records.STAGE_VERSION,
        schema_id=SchemaId.QA_RECORD,
        config={
            "source": source_name,
            "selection": selection.model_dump(mode="json"),
            **config,
        },
        inputs=(str(files.recipe.ref),),
        num_shards=max(1, _num_shards(num_rows, settings.rows_per_shard)),
    )


def attention_recipe(
    records_manifest: Manifest,
    settings: ExtractionConfig,
    model: Mapping[str, Any],
    next_turn: str | None,
    *,
    has_mixed_turns: bool,
) -> Recipe:
    """Attention of the usable questions.

    Args:
        records_manifest: of the questions.
        settings: whose answers, how long, shard size.
        model: identity of the frozen model.
        next_turn: the profile's text between turns; matters to the data set's answers only.
        has_mixed_turns: some of them are asked on their own, as their record cannot be told;
            matters where turns follow each other.
    """
    if settings.responses == "dataset":
        length: dict[str, Any] = {
            "responses": settings.responses,
            "max_conversation_tokens": settings.max_conversation_tokens,
            "next_turn": next_turn,
            # Once all conversations were in the first shard: those shards and these do not mix.
            "shares": "even",
        }
        if has_mixed_turns and next_turn is not None:
            # Once they were asked after turns of other records. Left out where there are none, so
            # that it changes no other address.
            length["mixed_turns"] = "apart"
        if model.get("family") not in NEVER_ANSWERED_AT_ONCE and any(
            asked.endswith(":") for asked in (model.get("prompt", ""), next_turn or "")
        ):
            length["answers"] = "after a space"
    else:
        length = {"max_new_tokens": settings.max_new_tokens}
    return Recipe(
        stage=Stage.EXTRACT_ATTENTION,
        stage_version=generated_answers.STAGE_VERSION,
        schema_id=SchemaId.ATTENTION_MAP,
        config={"model": dict(model), **length},
        inputs=(str(records_manifest.recipe.ref),),
        num_shards=_num_shards(num_usable(records_manifest), settings.rows_per_shard),
    )


def imported_attention_recipe(
    settings: PublishedLabels,
    files: Mapping[str, str],
    images_digest: str,
    images_uri: str,
    num_rows: int,
) -> Recipe:
    """Attention that the authors of SD-RPN published with their labels.

    Args:
        settings: of the import.
        files: name -> digest of each label pickle, in order.
        images_digest: digest of the names, sizes and versions of the images.
        images_uri: root that they are read from.
        num_rows: rows of all files, those too that cannot be used.
    """
    return Recipe(
        stage=Stage.EXTRACT_ATTENTION,
        stage_version=published_labels.STAGE_VERSION,
        schema_id=SchemaId.ATTENTION_MAP,
        config={
            "imported": "sd-rpn",
            "files": list(files.values()),
            "file_names": list(files),
            "name": settings.name,
            "datasets": {name: kind.value for name, kind in settings.datasets.items()},
            "default_kind": settings.default_kind.value,
            "images": images_digest,
            # Rows name images that stay in place, so where they are is part of the content.
            "images_uri": images_uri,
        },
        num_shards=_num_shards(num_rows, settings.rows_per_shard),
    )


def import_rejects_recipe(attention: Recipe) -> Recipe:
    """Rows that an import could not use, shard by shard like the attention of the others."""
    return Recipe(
        stage=attention.stage,
        stage_version=attention.stage_version,
        schema_id=SchemaId.IMPORT_REJECT,
        config={},
        inputs=(str(attention.ref),),
        num_shards=attention.num_shards,
    )


def labels_recipe(attention: Manifest, settings: LabelSettings) -> Recipe:
    """Pseudo-labels, shard by shard like the attention they are made of."""
    is_internvl = attention.recipe.config.get("model", {}).get("family") == "internvl"
    # Its canvases are no squares, and were once masked as such: those labels and these do not mix.
    padding = {"padding": "of the canvas"} if is_internvl else {}
    # Regions that share the maximum were once no rivals of each other.
    rivals = {"rivals": "equals too"} if settings.max_rival_ratio is not None else {}
    return Recipe(
        stage=Stage.MAKE_LABELS,
        stage_version=pseudo_labels.STAGE_VERSION,
        schema_id=SchemaId.PSEUDO_LABEL,
        config=settings.model_dump(mode="json") | padding | rivals,
        inputs=(str(attention.recipe.ref),),
        num_shards=len(attention.shards),
    )


def label_set_recipe(labels: Sequence[Manifest]) -> Recipe:
    """One label set of many label artifacts, one shard per dataset."""
    return Recipe(
        stage=Stage.MERGE_LABELS,
        stage_version=MERGE_VERSION,
        schema_id=SchemaId.LABEL_SET,
        config={},
        inputs=tuple(str(manifest.recipe.ref) for manifest in labels),
        num_shards=len(datasets_of(labels)),
    )


def training_recipe(
    label_set: ArtifactRef,
    settings: TrainingConfig,
    regions: RegionSettings,
    profile: ModelProfile,
    model: Mapping[str, Any],
) -> Recipe:
    """An RPN; its files are named in ``CHECKPOINT_FILES``."""
    return Recipe(
        stage=Stage.TRAIN_RPN,
        stage_version=training.STAGE_VERSION,
        schema_id=SchemaId.FILES,
        config={
            "model": dict(model),
            "profile": profile.identity(),
            "training": recipe_settings(settings),
            "regions": regions.identity(),
        },
        inputs=(str(label_set),),
        num_shards=len(CHECKPOINT_FILES),
    )


def predictions_recipe(
    records_manifest: Manifest,
    files: ArtifactRef,
    rpn: ArtifactRef,
    settings: EvaluationConfig,
    model: Mapping[str, Any],
    *,
    boxes_as_written: bool,
    all_answered: bool,
) -> Recipe:
    """Every method's answers to a benchmark's usable questions.

    Args:
        records_manifest: of the questions.
        files: the downloaded source.
        rpn: whose regions are tried.
        settings: what is compared.
        model: identity of the frozen model.
        boxes_as_written: each true box is the only one of its question and of its image.
        all_answered: no question lacks a reference answer.
    """
    identity = settings.model_dump(
        mode="json",
        exclude={"source", "benchmarks", "num_bootstrap", "rows_per_shard"}
        | {"threshold_sweep", "paper_model"}
        # Left out where they say nothing, so that they change no address of before they existed.
        | {name for name in ("region_threshold", "crop_tokens") if getattr(settings, name) is None},
    )
    # What changed since; left out where it cannot have mattered, so that addresses stay.
    changes = {}
    if model.get("family") in ONCE_GATED_BY_AREA:
        changes["gate"] = "by side"
    if settings.benchmark == "scenes" and not isinstance(settings.source, SceneSource):
        # Once, -5, 5 and .5 were the same; no scene has any.
        changes["exact_match"] = "signs and points kept"
    if not boxes_as_written:
        changes["true_boxes"] = "united by path"  # once, the last of several stood for all
    if not all_answered:
        changes["unanswered"] = "left out"  # once, they were asked and whatever came was wrong
    return Recipe(
        stage=Stage.EVALUATE,
        stage_version=harness.STAGE_VERSION,
        schema_id=SchemaId.PREDICTION,
        config={"model": dict(model), **identity, **changes},
        inputs=(str(records_manifest.recipe.ref), str(files), str(rpn)),
        num_shards=_num_shards(num_usable(records_manifest), settings.rows_per_shard),
    )


def results_recipe(
    predictions: ArtifactRef, settings: EvaluationConfig, labels: LabelSettings
) -> Recipe:
    """The results table and, apart from it, the speed: the files of ``RESULTS_FILES``."""
    return Recipe(
        stage=Stage.EVALUATE,
        stage_version=RESULTS_VERSION,
        schema_id=SchemaId.FILES,
        config={
            "num_bootstrap": settings.num_bootstrap,
            "seed": settings.seed,
            "labels": labels.model_dump(mode="json"),
        },
        inputs=(str(predictions),),
        num_shards=len(RESULTS_FILES),
    )


def table_recipe(
    inputs: Sequence[ArtifactRef], names: Sequence[Any], model: str, settings: EvaluationConfig
) -> Recipe:
    """The table of all benchmarks: the files of ``TABLE_FILES``.

    Args:
        inputs: the RPN and all results.
        names: what each of the results is of.
        model: name of the profile.
        settings: whose figures to compare with.
    """
    return Recipe(
        stage=Stage.EVALUATE,
        stage_version=TABLE_VERSION,
        schema_id=SchemaId.FILES,
        config={"names": list(names), "model": model, "paper_model": settings.paper_model},
        inputs=tuple(str(ref) for ref in inputs),
        num_shards=len(TABLE_FILES),
    )


def report_recipe(inputs: Sequence[ArtifactRef], config: Mapping[str, Any]) -> Recipe:
    """The report: one HTML file.

    Args:
        inputs: everything it is made from.
        config: what it shows of the configuration.
    """
    return Recipe(
        stage=Stage.REPORT,
        stage_version=REPORT_VERSION,
        schema_id=SchemaId.FILES,
        config=dict(config),
        inputs=tuple(str(ref) for ref in inputs),
        num_shards=1,
    )


def _num_shards(num_rows: int, rows_per_shard: int) -> int:
    return math.ceil(num_rows / rows_per_shard)

"""Stage ``evaluate``: a benchmark answered in every way, then the results table.

Predictions are made shard by shard; the table is computed from them alone. Measured times are kept
beside the predictions' receipts and in a file of their own, so that everything else comes out with
the same bytes whenever and wherever it is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from PIL import Image

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.base import Settings
from data_contracts.configs import EvaluationConfig, ModelConfig
from data_contracts.errors import SdrpnError
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import ModelProfile
from data_contracts.registry import frame_of
from data_contracts.results import Results, Speed
from data_contracts.sources import BenchmarkSource, EvaluationSource
from sdrpn_core.benchmarks import Document, aggregate
from sdrpn_core.evaluation.benchmark_figures import benchmark_figures, mean_score
from sdrpn_core.evaluation.harness import Evaluator
from sdrpn_core.evaluation.methods import READ_ATTENTION
from sdrpn_core.evaluation.results import summarize
from sdrpn_core.evaluation.speed import Timings
from sdrpn_core.images import UnreadableImage
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.threads import in_parallel
from tasks import recipes
from tasks.artifacts.device_memory import batch_size_of
from tasks.artifacts.stage import FileShard, FrameShard, StageRun, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.asked_kinds import require_heads
from tasks.document_table import document_table
from tasks.extract_attention import usable_questions
from tasks.models import adapter_for, model_identity, placement
from tasks.rpn_files import stored_checkpoint
from tasks.sources.evaluation_documents import (
    SourceDocuments,
    benchmark_rows,
    mix_boxes,
    mix_rows,
    warn_of_unasked_boxes,
)
from tasks.sources.files import load_image
from tasks.unanswered import num_unanswered, require_answers, warn_of_unanswered

RESULTS_NAME, SPEED_NAME, DOCUMENTS_NAME = recipes.RESULTS_FILES


class BenchmarkError(SdrpnError):
    """A benchmark's data cannot be used as it is."""


def predictions_recipe(
    run: StageRun,
    records: ArtifactRef,
    files: ArtifactRef,
    rpn: ArtifactRef,
    model: ModelConfig,
    settings: EvaluationConfig,
) -> Recipe:
    """What to make from a benchmark's questions and an RPN.

    Raises:
        NoAnswers: if nothing says what answers to them are right.
    """
    manifest = run.store.manifest(records)
    return recipes.predictions_recipe(
        manifest,
        files,
        rpn,
        settings,
        model_identity(model),
        boxes_as_written=mix_boxes(run.store, files).are_as_written,
        all_answered=num_left_out(run.store, records, settings.source) == 0,
    )


def require_askable(
    store: ArtifactStore, records: ArtifactRef, profile: ModelProfile, settings: EvaluationConfig
) -> None:
    """See to it, before anything is trained, that a benchmark can be asked and judged.

    Raises:
        NoAnswers: if nothing says what answers are right.
        UncalibratedProfile: if a method reads attention, and the profile has no heads for a kind of
            question.
    """
    num_left_out(store, records, settings.source)
    if READ_ATTENTION.intersection(settings.methods):
        require_heads(store, records, profile)


def num_left_out(store: ArtifactStore, records: ArtifactRef, source: EvaluationSource) -> int:
    """Number of a source's questions that have no reference answer, and are not asked.

    Raises:
        NoAnswers: if none has one.
    """
    if isinstance(source, BenchmarkSource):  # its rows tell, and its rules say what an empty one is
        return 0
    require_answers(
        store,
        records,
        f"source {source.name!r}",
        "nothing says which answers are right",
        "leave the source out of the evaluation",
    )
    return num_unanswered(store, records)


def make_prediction_shard(
    run: StageRun,
    recipe: Recipe,
    index: int,
    records: ArtifactRef,
    files: ArtifactRef,
    rpn: ArtifactRef,
    model: ModelConfig,
    settings: EvaluationConfig,
) -> FrameShard:
    """Answer one shard's questions with every method; those without a reference answer are left
    out, as whatever was answered to them would count as wrong.

    Raises:
        BenchmarkError: if an image cannot be read; scores of the rest would not be comparable.
    """
    questions = usable_questions(run.store, records, recipe.num_shards, index)
    source = SourceDocuments(run.store, files, settings.benchmark)
    if index == 0:
        warn_of_unasked_boxes(run.store, records, files)
    documents = [source.document(question) for question in questions]
    if not isinstance(settings.source, BenchmarkSource):
        if index == 0:
            name, consequence = f"source {settings.source.name!r}", "are left out of the evaluation"
            warn_of_unanswered(run.store, records, name, consequence)
        documents = [document for document in documents if document.answers]
    digests = {question["image_uri"]: question["image_sha256"] for question in questions}
    evaluator = _evaluator(_Setup(rpn, model, settings, placement(run.runtime), run))
    load_images = partial(in_parallel, lambda uri: _open(run.store, uri, digests))
    timings = Timings()

    def answered(batch: Sequence[Document]) -> list[dict[str, Any]]:
        """By all methods, in whatever batches: so their times still compare."""
        return evaluator.evaluate(
            batch, load_images, batch_size=max(len(batch), 1), on_batch=timings.add
        )

    batches = batch_size_of(recipe.ref, run.runtime.batch_size)
    rows = batches.in_batches(evaluator.device, documents, answered)
    return FrameShard(
        frame_of(rows, recipe.schema_id), measurements=timings.to_series() | batches.measured
    )


def summarize_predictions(
    run: StageRun, predictions: ArtifactRef, settings: EvaluationConfig, labels: LabelSettings
) -> ArtifactRef:
    """Make the results table and, apart from it, what tells of times: speeds, and all documents."""

    def make_shard(index: int) -> FileShard:
        name = recipes.RESULTS_FILES[index]
        if name == DOCUMENTS_NAME:
            return FileShard(name, document_table(run.store, predictions))
        table: Settings = (
            _speed(run.store, predictions)
            if name == SPEED_NAME
            else _results(run.store, predictions, settings, labels)
        )
        return FileShard(name, f"{table.model_dump_json(indent=2)}\n".encode())

    return run_stage(run, recipes.results_recipe(predictions, settings, labels), make_shard)


def _results(
    store: ArtifactStore,
    predictions: ArtifactRef,
    settings: EvaluationConfig,
    labels: LabelSettings,
) -> Results:
    frame = store.read_frame(predictions)
    results = summarize(frame, labels, num_bootstrap=settings.num_bootstrap, seed=settings.seed)
    inputs = store.manifest(predictions).recipe.inputs
    questions, files = (ArtifactRef.parse(name) for name in inputs[:2])
    if rows := benchmark_rows(store, questions, files):
        return results.model_copy(update={"figures": benchmark_figures(frame, rows, aggregate)})
    if settings.benchmark == "scenes":  # both modes are the same
        return results
    own = mix_rows(store, questions)
    return results.model_copy(update={"figures": benchmark_figures(frame, own, mean_score)})


def _speed(store: ArtifactStore, predictions: ArtifactRef) -> Speed:
    shards = store.manifest(predictions).shards
    return Timings.from_series([shard.measurements for shard in shards]).summarize()


def read_results(store: ArtifactStore, results: ArtifactRef) -> Results:
    """The results table of an evaluation, speeds included."""
    table = Results.model_validate_json(store.read_file(results, RESULTS_NAME))
    speed = Speed.model_validate_json(store.read_file(results, SPEED_NAME))
    return table.model_copy(update={"speed": speed.methods})


@dataclass(frozen=True)
class _Setup:
    """What an evaluator depends on; equal setups share one, so that it warms up once."""

    rpn: ArtifactRef
    model: ModelConfig
    settings: EvaluationConfig
    placement: tuple[object, ...]
    """Where the model runs."""
    run: StageRun = field(compare=False)


@lru_cache(maxsize=1)
def _evaluator(setup: _Setup) -> Evaluator:
    adapter = adapter_for(setup.model, setup.run.runtime)
    checkpoint = stored_checkpoint(setup.run.store, setup.rpn)
    pipeline = ZoomPipeline.beside(adapter, checkpoint)
    pipeline.threshold = setup.settings.threshold_beside(pipeline.threshold)
    return Evaluator(adapter, setup.settings, pipeline)


def _open(store: ArtifactStore, uri: str, digests: Mapping[str, str | None]) -> Image.Image:
    try:
        return load_image(store, uri, digests[uri])
    except UnreadableImage as error:
        raise BenchmarkError(
            f"benchmark image {uri} cannot be read ({error}); mend it, or leave its questions out"
        ) from error

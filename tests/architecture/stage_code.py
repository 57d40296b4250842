"""Digest of the code that decides what a stage's artifacts hold.

The code of a stage is its adapter in ``tasks/`` and every core module that this reaches. Comments,
docstrings and layout do not enter, so that they do not seem to change a stage.
"""

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sdrpn_core import calibration, pseudo_labels, records
from sdrpn_core.evaluation import harness
from sdrpn_core.extraction import generated_answers
from sdrpn_core.interop import published_labels
from sdrpn_core.rpn import training
from tasks import recipes
from tests.architecture.source_tree import Source, sources

REFERENCE = "sdrpn_core.reference"
RECORD = Path(__file__).with_name("stage_versions.json")


@dataclass(frozen=True)
class StageCode:
    """Where a stage's code starts, and the version that its author vouches for."""

    roots: tuple[str, ...]
    version: int
    constant: str
    """Where to raise the version."""


STAGES: dict[str, StageCode] = {
    "scenes": StageCode(
        ("sdrpn_core.reference.mix", "tasks.sources.scene_files"),
        recipes.SCENES_VERSION,
        "tasks/recipes.py SCENES_VERSION",
    ),
    "calibrate": StageCode(
        ("tasks.calibrate",),
        calibration.STAGE_VERSION,
        "sdrpn_core/calibration/search.py STAGE_VERSION",
    ),
    "download": StageCode(
        (
            "tasks.download",
            "tasks.sources.archives",
            "tasks.sources.conversions",
            "tasks.sources.downloaded_files",
            "tasks.sources.image_places",
            "tasks.sources.local_records",
            "tasks.sources.parquet_images",
            "tasks.sources.access",
            "tasks.sources.source_fetcher",
            "tasks.sources.survey",
            "tasks.sources.true_box_files",
        ),
        recipes.DOWNLOAD_VERSION,
        "tasks/recipes.py DOWNLOAD_VERSION",
    ),
    "benchmark-files": StageCode(
        ("tasks.sources.benchmark_files",),
        recipes.BENCHMARK_FILES_VERSION,
        "tasks/recipes.py BENCHMARK_FILES_VERSION",
    ),
    "build-jsonl": StageCode(
        (
            "tasks.build_jsonl",
            "tasks.artifacts.frame_buckets",
            "tasks.sources.record_buckets",
            "tasks.sources.record_stream",
            "tasks.sources.images",
        ),
        records.STAGE_VERSION,
        "sdrpn_core/records.py STAGE_VERSION",
    ),
    "extract-attention": StageCode(
        (
            "tasks.extract_attention",
            "tasks.attention_reuse",
            "tasks.attention_rows",
            "tasks.given_responses",
            "tasks.opened_images",
            "sdrpn_core.models.loading",
        ),
        generated_answers.STAGE_VERSION,
        "sdrpn_core/extraction/generated_answers.py STAGE_VERSION",
    ),
    "import-labels": StageCode(
        ("tasks.import_labels",),
        published_labels.STAGE_VERSION,
        "sdrpn_core/interop/published_labels.py STAGE_VERSION",
    ),
    "make-labels": StageCode(
        ("tasks.make_labels",),
        pseudo_labels.STAGE_VERSION,
        "sdrpn_core/pseudo_labels.py STAGE_VERSION",
    ),
    "merge-labels": StageCode(
        ("tasks.merge_labels",), recipes.MERGE_VERSION, "tasks/recipes.py MERGE_VERSION"
    ),
    "train-rpn": StageCode(
        ("tasks.train_rpn", "tasks.training_reuse", "sdrpn_core.models.loading"),
        training.STAGE_VERSION,
        "sdrpn_core/rpn/training.py STAGE_VERSION",
    ),
    "evaluate": StageCode(
        (
            "tasks.evaluate",
            "tasks.sources.evaluation_documents",
            "tasks.sources.mix_boxes",
            "tasks.unanswered",
            "sdrpn_core.models.loading",
        ),
        harness.STAGE_VERSION,
        "sdrpn_core/evaluation/harness.py STAGE_VERSION",
    ),
    "results": StageCode(
        ("tasks.document_table", "sdrpn_core.evaluation.results", "sdrpn_core.evaluation.speed"),
        recipes.RESULTS_VERSION,
        "tasks/recipes.py RESULTS_VERSION",
    ),
    "table": StageCode(
        (
            "tasks.benchmark_table",
            "sdrpn_core.evaluation.comparison",
            "sdrpn_core.report.comparison",
        ),
        recipes.TABLE_VERSION,
        "tasks/recipes.py TABLE_VERSION",
    ),
    "report": StageCode(
        ("tasks.report", "tasks.training_warnings"),
        recipes.REPORT_VERSION,
        "tasks/recipes.py REPORT_VERSION",
    ),
}


KEEPS_BYTES = (
    "tasks.artifacts.",
    "tasks.asked_kinds",
    "tasks.fetching.",
    "tasks.loaded_model",
    "tasks.models",
    "tasks.recipes",
    "tasks.rpn_files",
    "tasks.shard_statistics",
    "tasks.sources.files",
    "tasks.sources.local_sources",
    "tasks.sources.same_files",
    "tasks.storage.",
    "tasks.work_progress",
)
"""Beginnings of names of modules that stages use and that decide nothing about what they make."""


def reached_tasks() -> set[str]:
    """Modules of ``tasks`` that the adapter of any stage reaches."""
    known = _modules()
    reached: set[str] = set()
    waiting = [root for stage in STAGES.values() for root in stage.roots]
    while waiting:
        name = waiting.pop()
        if not name.startswith("tasks.") or name not in known or name in reached:
            continue
        if len(known[name].tree.body) > 1:  # a package's docstring is no code
            reached.add(name)
            waiting += [target for _, target in known[name].imports]
    return reached


@cache
def current() -> dict[str, dict[str, Any]]:
    """Version and code digest of every stage, as the source stands."""
    return {
        name: {"version": stage.version, "digest": _digest(stage.roots)}
        for name, stage in STAGES.items()
    }


def recorded() -> dict[str, dict[str, Any]]:
    """Version and code digest of every stage, as last recorded."""
    found: dict[str, dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def modules_of(roots: tuple[str, ...]) -> set[str]:
    """Dotted names of the roots and of every core module that they reach."""
    known = _modules()
    reached: set[str] = set()
    waiting = [root for root in roots if root in known]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        imported = {target for _, target in known[name].imports if target in known}
        waiting += [target for target in imported if _belongs(target, roots)]
    return reached


def _belongs(module: str, roots: tuple[str, ...]) -> bool:
    """Core modules do. How scenes and the reference weights are made is a stage of its own, or is
    in the weights' digest."""
    if module.startswith(REFERENCE):
        return roots[0].startswith(REFERENCE)
    return module.startswith("sdrpn_core.")


def _digest(roots: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for name in sorted(modules_of(roots)):
        total.update(f"{name}\n{_text(name)}\n".encode())
    return total.hexdigest()[:16]


@cache
def _text(module: str) -> str:
    """As it enters the digests of all stages that reach it."""
    return normalised(_modules()[module].tree)


@cache
def _modules() -> Mapping[str, Source]:
    return {source.module: source for source in sources("sdrpn_core", "tasks")}


def normalised(node: Any) -> str:
    """Text of a syntax tree that is the same on every Python version."""
    if isinstance(node, list):
        return f"[{','.join(normalised(item) for item in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and _has_docstring(node):
            value = value[1:]
        if value not in (None, []):
            fields.append(f"{name}={normalised(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _has_docstring(node: ast.AST) -> bool:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None

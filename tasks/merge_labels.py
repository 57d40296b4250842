"""Stage ``merge-labels``: label artifacts of many sources become one set, a shard per dataset."""

from collections import Counter
from collections.abc import Sequence

import polars as pl

from data_contracts.artifact import ArtifactRef
from data_contracts.enums import LabelStatus
from tasks import plan
from tasks.artifact_store import ArtifactStore
from tasks.stage import FrameShard, StageRun, run_stage


def merge_labels(run: StageRun, labels: Sequence[ArtifactRef]) -> ArtifactRef:
    """Merge labels; of a question that several sources hold, the first labelled row stays."""
    manifests = [run.store.manifest(ref) for ref in labels]
    recipe = plan.label_set_recipe(manifests)
    datasets = plan.datasets_of(manifests)

    def make_shard(index: int) -> FrameShard:
        rows = _rows_of_dataset(run.store, labels, datasets[index])
        # Labelled rows first, so that a source that failed does not hide one that did not.
        is_ok = pl.col("status") == LabelStatus.OK.value
        ranked = rows.sort(is_ok, descending=True, maintain_order=True)
        merged = ranked.unique("question_id", keep="first", maintain_order=True)
        counts: Counter[str] = Counter(plan.status_statistic(s) for s in merged["status"])
        counts["duplicates"] = rows.height - merged.height
        for cells in ("num_foreground", "num_background", "num_ignore"):
            counts[cells] = int(merged[cells].sum())
        return FrameShard(merged, counts)

    return run_stage(run, recipe, make_shard)


def _rows_of_dataset(
    store: ArtifactStore, labels: Sequence[ArtifactRef], dataset: str
) -> pl.DataFrame:
    name = plan.dataset_statistic(dataset)
    frames = [
        store.read_shard_frame(ref, shard.index)
        .filter(pl.col("dataset") == dataset)
        .with_columns(label_artifact=pl.lit(str(ref)))
        for ref in labels
        for shard in store.manifest(ref).shards
        if shard.statistics.get(name)
    ]
    return pl.concat(frames)

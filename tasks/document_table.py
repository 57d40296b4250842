"""One row per document and way of answering, with what the clock said, for whoever counts anew.

The file's metadata hold the full configuration (``sdrpn.configuration``) and the artifacts that
went in (``sdrpn.inputs``). Score maps are left out; they are among the predictions.
"""

import io
import json
from collections.abc import Mapping, Sequence

import polars as pl
import pyarrow.parquet as pq

from data_contracts.artifact import ArtifactRef, Manifest
from data_contracts.enums import Method
from sdrpn_core.evaluation.speed import Timings
from tasks.artifacts.row_ranges import shard_range
from tasks.artifacts.store import ArtifactStore
from tasks.extract_attention import usable_ids

_MAPS = ("roi_map", "sink_map")


def document_table(store: ArtifactStore, predictions: ArtifactRef) -> bytes:
    """Parquet of an evaluation's predictions and times.

    ``seconds`` is a document's share of its batch's time.
    """
    manifest = store.manifest(predictions)
    asked = usable_ids(store, ArtifactRef.parse(manifest.recipe.inputs[0]))
    num_shards = len(manifest.shards)
    frames = [
        _timed_shard(store, manifest, index, asked[share.start : share.stop])
        for index, share in enumerate(
            shard_range(len(asked), num_shards, n) for n in range(num_shards)
        )
    ]
    metadata = {
        "sdrpn.predictions": str(predictions),
        "sdrpn.configuration": json.dumps(manifest.recipe.config, sort_keys=True),
        "sdrpn.inputs": json.dumps(manifest.recipe.inputs),
    }
    buffer = io.BytesIO()
    table = pl.concat(frames) if frames else store.read_frame(predictions).drop(_MAPS)
    rows = table.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(rows.replace_schema_metadata(metadata), buffer, compression="zstd")
    return buffer.getvalue()


def _timed_shard(
    store: ArtifactStore, manifest: Manifest, index: int, asked: Sequence[str]
) -> pl.DataFrame:
    """Rows of one shard, whose questions were asked in this order of their ids."""
    frame = store.read_shard_frame(manifest, index).drop(_MAPS)
    seconds = _seconds(frame, asked, manifest.shards[index].measurements)
    times = pl.DataFrame(
        {
            "method": [method for method, _ in seconds],
            "question_id": [question_id for _, question_id in seconds],
            "seconds": list(seconds.values()),
        },
        schema={"method": frame.schema["method"], "question_id": pl.String, "seconds": pl.Float64},
    )
    return frame.join(times, on=["method", "question_id"], how="left", maintain_order="left")


def _seconds(
    frame: pl.DataFrame, order: Sequence[str], measurements: Mapping[str, Sequence[float]]
) -> dict[tuple[str, str], float]:
    """(method, question id) -> seconds; rows are stored sorted, and were answered in ``order``."""
    batches = Timings.from_series([measurements]).batches
    found: dict[tuple[str, str], float] = {}
    for method in Method:
        rows = set(frame.filter(pl.col("method") == method.value)["question_id"])
        answered = iter([question_id for question_id in order if question_id in rows])
        for batch in batches:
            if method in batch:
                for _ in range(batch[method].num_documents):
                    found[method.value, next(answered)] = batch[method].seconds_per_document
    return found

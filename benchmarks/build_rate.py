"""Rate and memory of building questions: ``python -m benchmarks.build_rate``.

The yardstick is ``json.load`` plus a loop that reads every question and writes nothing. Each size
and way has a process of its own so that each peak is its own; memory is what comes on top of the
imports. Times are CPU time, so that they mean the same on a busy machine. Several numbers of
``--records`` show how the yardstick's memory grows and that the build's does not.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from benchmarks.generated_mix import image_tables, write_generated_mix
from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.configs import RecordsConfig
from data_contracts.enums import Stage
from data_contracts.registry import SchemaId
from data_contracts.runtime import RuntimeConfig
from data_contracts.sources import LlavaMixSource
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.storage.digests import digest_file

T = TypeVar("T")


def prepare(folder: str, num_records: int) -> ArtifactRef:
    """Write the mix and commit what the download stage would have committed for it."""
    mix = Path(folder) / "mix.json"
    write_generated_mix(mix, num_records)
    images = image_tables(num_records)
    recipe = Recipe(
        stage=Stage.DOWNLOAD,
        stage_version=0,
        schema_id=SchemaId.SOURCE_FILE,
        config={"num_records": num_records},
        num_shards=1 + len(images),
    )
    writer = ArtifactStore(f"{folder}/store").writer(recipe)
    sha256 = digest_file(mix)
    uri = writer.put_blob_file(mix, sha256, ".json", may_link=True)
    row = {"path": "records.json", "uri": uri, "num_bytes": mix.stat().st_size, "sha256": sha256}
    frame = pl.DataFrame([{**row, "problem": None}], schema_overrides={"problem": pl.String})
    writer.put_frame(0, frame, {"num_records": num_records})
    for number, table in enumerate(images, start=1):
        writer.put_frame(number, table)
    writer.commit()
    return recipe.ref


def measure_build(folder: str, files: ArtifactRef) -> dict[str, Any]:
    """CPU seconds, peak memory and rows by status of the real stage, every turn."""
    store = ArtifactStore(f"{folder}/store")
    before = peak_mib()
    source = LlavaMixSource(name="mix", records="mix.json", images="images")
    settings = RecordsConfig(turns="all")
    start = time.process_time()
    ref = build_jsonl(StageRun(store, RuntimeConfig()), files, source, settings)
    seconds = time.process_time() - start
    statistics = store.manifest(ref).statistics
    return {"seconds": seconds, "peak": peak_mib(), "before": before, "rows": statistics}


def measure_plain(folder: str) -> dict[str, Any]:
    """CPU seconds and peak memory of the yardstick; ``rows`` is a number."""
    before = peak_mib()
    start = time.process_time()
    with (Path(folder) / "mix.json").open(encoding="utf-8") as file:
        records = json.load(file)
    questions = [
        turn["value"].replace("<image>", "").strip()
        for record in records
        for turn in record["conversations"]
        if turn["from"] == "human"
    ]
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak": peak_mib(), "before": before, "rows": len(questions)}


def peak_mib() -> float:
    """Most memory that this process has had since it was started.

    ``getrusage`` would also count what its parent had then, which hides the growth of a child.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kib,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(kib) / 1024


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function where nothing else has used memory."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(num_records: int) -> dict[str, Any]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        files = in_own_process(prepare, folder, num_records)
        size = (Path(folder) / "mix.json").stat().st_size / (1 << 20)
        plain = in_own_process(measure_plain, folder)
        build = in_own_process(measure_build, folder, files)
    return {
        "records": num_records,
        "JSON MiB": round(size),
        "rows": round(sum(build["rows"].values())),
        "load records/s": round(num_records / plain["seconds"]),
        "load MiB": round(plain["peak"] - plain["before"]),
        "build records/s": round(num_records / build["seconds"]),
        "build MiB": round(build["peak"] - build["before"]),
        "build/load time": round(build["seconds"] / plain["seconds"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[200_000])
    for number, num_records in enumerate(parser.parse_args().records):
        found = measure(num_records)
        if not number:
            print(" | ".join(found), flush=True)
        cells = (f"{value:>{len(name)}}" for name, value in found.items())
        print(" | ".join(cells), flush=True)


if __name__ == "__main__":
    main()

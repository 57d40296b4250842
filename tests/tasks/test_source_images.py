"""Images of a downloaded source, looked up by path."""

from typing import Any

import polars as pl

from data_contracts.artifact import ArtifactRef
from sdrpn_core.records import SourceFile
from tasks.artifacts.store import ArtifactStore
from tasks.sources.images import source_images
from tests.artifacts import source_recipe

DIGESTS = {name: character * 64 for name, character in zip("abcde", "01020", strict=True)}


def image(name: str) -> dict[str, Any]:
    problem = "truncated" if name == "d" else None
    row = {"path": f"images/{name}.png", "uri": f"blobs/{name}", "num_bytes": ord(name)}
    return {**row, "sha256": DIGESTS[name], "problem": problem}


def downloaded(store: ArtifactStore) -> ArtifactRef:
    """Images in two shards after the one of documents; ``a``, ``c`` and ``e`` are the same."""
    recipe = source_recipe().model_copy(update={"schema_id": "source_file.v2"})
    writer = store.writer(recipe)
    documents = [image("a") | {"path": "records.json"}]
    for index, rows in enumerate((documents, [image("e")], [image(name) for name in "abcd"])):
        writer.put_frame(index, pl.DataFrame(rows, schema_overrides={"problem": pl.String}))
    writer.commit()
    return recipe.ref


def test_identical_images_share_the_first_address_by_path(memory_store: ArtifactStore):
    with source_images(memory_store, downloaded(memory_store)) as images:
        found = images.files(["e.png", "a.png", "b.png", "d.png"])
    assert found == {
        "a.png": SourceFile("blobs/a", DIGESTS["a"], ord("a")),
        "b.png": SourceFile("blobs/b", DIGESTS["b"], ord("b")),
        "d.png": SourceFile("blobs/d", DIGESTS["d"], ord("d"), "truncated"),
        "e.png": SourceFile("blobs/a", DIGESTS["e"], ord("e")),
    }


def test_what_is_not_there_is_not_found(memory_store: ArtifactStore):
    with source_images(memory_store, downloaded(memory_store)) as images:
        assert images.files([]) == {}
        assert images.files(["f.png", "A.png", "a.pn_", "", "records.json"]) == {}

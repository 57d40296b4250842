"""The images of a downloaded source by path, in a database on disk: memory holds a small cache."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

import polars as pl

from data_contracts.artifact import ArtifactRef
from sdrpn_core.records import SourceFile
from sdrpn_core.temporary_database import TemporaryDatabase
from tasks.artifacts.store import ArtifactStore
from tasks.sources.downloaded_files import IMAGES_FOLDER

_COLUMNS = ("path", "uri", "sha256", "num_bytes", "problem")
_TABLES = """
CREATE TABLE image (
    path TEXT PRIMARY KEY, uri TEXT, sha256 TEXT, num_bytes INTEGER, problem TEXT
) WITHOUT ROWID;
CREATE TABLE shared (sha256 TEXT PRIMARY KEY, path TEXT) WITHOUT ROWID;
"""
_SHARE = """
INSERT INTO shared SELECT sha256, min(path) FROM image GROUP BY sha256 HAVING count(*) > 1
"""
_FIND = """
SELECT coalesce(first.uri, image.uri), image.sha256, image.num_bytes, image.problem
FROM image
LEFT JOIN shared ON shared.sha256 = image.sha256
LEFT JOIN image AS first ON first.path = shared.path
WHERE image.path = ?
"""


class SourceImages:
    """Images by path; identical ones share one address, the first by path."""

    def __init__(self, database: TemporaryDatabase) -> None:
        self._database = database

    def files(self, paths: Iterable[str]) -> dict[str, SourceFile]:
        """Those of some paths (as in the records) that there are."""
        found = ((path, self._database.execute(_FIND, (path,)).fetchone()) for path in paths)
        return {path: SourceFile(*facts) for path, facts in found if facts is not None}


@contextmanager
def source_images(store: ArtifactStore, files: ArtifactRef) -> Iterator[SourceImages]:
    """The images of a downloaded source; their database goes at the end."""
    with closing(TemporaryDatabase(_TABLES)) as database:
        for table in store.frames(files, _COLUMNS):
            images = table.filter(pl.col("path").str.starts_with(IMAGES_FOLDER)).with_columns(
                pl.col("path").str.strip_prefix(IMAGES_FOLDER)
            )
            database.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?)", images.iter_rows())
        database.execute(_SHARE)
        yield SourceImages(database)

"""Which member of an archive, or file of a folder, stands for an image that the records name."""

import re
import unicodedata
from collections.abc import Callable

import pytest

from data_contracts.sources import ImageArchive, ImageFolder
from tasks.artifacts.store import ArtifactStore
from tasks.sources.archives import UnsafeArchive
from tasks.sources.image_places import Archive, Folder, archive_addresses
from tests.tasks.test_archives import LATIN_1, tarred, zipped

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "\u00fc.png") for form in ("NFC", "NFD"))
assert COMPOSED != DECOMPOSED
both_kinds = pytest.mark.parametrize("pack", [zipped, tarred])


def served(
    store: ArtifactStore, data: bytes, *names: str, folder: str | None = None
) -> dict[str, str]:
    """Name -> content of the member that stands for it."""
    store.storage.put("lake/a", data)
    uri = store.storage.uri("lake/a")
    archive = Archive(uri, "https://host/a", store.storage, "lake/a", (), None)
    place = ImageArchive(file="https://host/a", folder=folder)
    found = archive_addresses(archive, place, names, uri)
    return {name: store.read_uri(address).decode() for name, address in found.items()}


@both_kinds
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("folder", "wanted", "whole", "others"),
    [
        (None, "1.png", "1.png", ("thumbs/1.png",)),
        (None, "1.png", "1.png", ("thumbs/1.png", "small/1.png")),
        (None, "a/1.png", "a/1.png", ("b/a/1.png", "1.png")),
        ("gqa", "gqa/1.png", "1.png", ("thumbs/1.png", "old/gqa/1.png")),
        ("gqa", "gqa/1.png", "gqa/1.png", ("old/gqa/1.png", "thumbs/1.png")),
        (None, COMPOSED, COMPOSED, (DECOMPOSED,)),
        (None, DECOMPOSED, DECOMPOSED, (COMPOSED, f"x/{COMPOSED}")),
        (None, COMPOSED, DECOMPOSED, (f"x/{DECOMPOSED}", f"y/{DECOMPOSED}")),
    ],
)
def test_the_member_of_that_very_path_is_meant(
    memory_store: ArtifactStore,
    pack: Callable[[dict[str, bytes]], bytes],
    folder: str | None,
    wanted: str,
    whole: str,
    others: tuple[str, ...],
    is_first: bool,
):
    """A picture with a thumbnail of its name in a folder beside it had two members, and the archive
    was refused."""
    order = [whole, *others] if is_first else [*others, whole]
    files = {name: b"whole" if name == whole else b"other" for name in order}
    assert served(memory_store, pack(files), wanted, folder=folder) == {wanted: "whole"}


@both_kinds
@pytest.mark.parametrize(
    ("folder", "wanted", "names"),
    [
        (None, "1.png", ("a/1.png", "b/1.png")),
        (None, "1.png", ("a/1.png", "b/1.png", "c/1.png")),
        ("gqa", "gqa/1.png", ("1.png", "gqa/1.png")),
        ("gqa", "gqa/1.png", ("a/gqa/1.png", "b/1.png")),
        (None, COMPOSED, (f"a/{DECOMPOSED}", f"b/{DECOMPOSED}")),
    ],
)
def test_two_members_that_fit_equally_well_are_refused(
    memory_store: ArtifactStore,
    pack: Callable[[dict[str, bytes]], bytes],
    folder: str | None,
    wanted: str,
    names: tuple[str, ...],
):
    data = pack(dict.fromkeys(names, b"x"))
    message = rf"^https://host/a: has two members for {re.escape(repr(wanted))}, "
    with pytest.raises(UnsafeArchive, match=message + re.escape(repr(names[1]))):
        served(memory_store, data, wanted, folder=folder)


@pytest.mark.parametrize("odd", [f"{LATIN_1}.txt", f"{LATIN_1}/2.png", f"{LATIN_1}/1.png"])
def test_a_member_whose_name_is_no_unicode_is_passed_over_unless_it_is_wanted(
    memory_store: ArtifactStore, odd: str
):
    """A text file with a name in Latin-1 beside the pictures, and the archive was refused."""
    assert served(memory_store, tarred({odd: b"odd", "1.png": b"1"}), "1.png") == {"1.png": "1"}
    message = (
        r"member 'caf\\udce9/1.png', which is for '1.png', has a name that is not valid Unicode"
    )
    with pytest.raises(UnsafeArchive, match=message):
        served(memory_store, tarred({f"{LATIN_1}/1.png": b"odd"}), "1.png")


def test_odd_names_are_told_where_images_are_missing(
    memory_store: ArtifactStore, caplog: pytest.LogCaptureFixture
):
    """No record can name them: images of such an archive would be missing without a word."""
    data = tarred({f"{LATIN_1}.png": b"odd", "1.png": b"1"})
    assert served(memory_store, data, "1.png") == {"1.png": "1"}
    assert not caplog.messages
    assert served(memory_store, data, "1.png", "caf\u00e9.png") == {"1.png": "1"}
    (told,) = caplog.messages
    assert r"the names of 1 members are not UTF-8" in told
    assert r"the first: 'caf\udce9.png'" in told


@both_kinds
@pytest.mark.parametrize("names", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
@pytest.mark.parametrize("folder", [None, "gqa"])
def test_accents_of_a_member_may_be_spelt_otherwise(
    memory_store: ArtifactStore,
    pack: Callable[[dict[str, bytes]], bytes],
    names: tuple[str, str],
    folder: str | None,
):
    """Images of a zip made on macOS were missing, although both names read the same."""
    wanted = names[0] if folder is None else f"{folder}/{names[0]}"
    for path in (names[1], f"data/{names[1]}", f"top/gqa/{names[1]}"):
        data = pack({path: b"1", "other.png": b"2"})
        assert served(memory_store, data, wanted, folder=folder) == {wanted: "1"}


def test_a_member_may_be_one_image_by_spelling_and_another_by_its_end(memory_store: ArtifactStore):
    accent = COMPOSED.removesuffix(".png")
    member = f"{unicodedata.normalize('NFD', accent)}/1.png"
    wanted = f"{accent}/1.png"
    found = served(memory_store, zipped({member: b"a", "1.png": b"b"}), wanted, "1.png")
    assert found == {wanted: "a", "1.png": "b"}


@pytest.mark.parametrize("names", [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_accents_of_a_file_may_be_spelt_otherwise(store: ArtifactStore, names: tuple[str, str]):
    wanted, there = names
    store.storage.put(f"lake/{there}", b"1")
    store.storage.put("lake/2.png", b"2")
    place = ImageFolder(uri=store.storage.uri("lake"))
    found = Folder.look(store.storage, place, {wanted, "2.png", "\u00e4.png"})
    assert list(found.found) == sorted([wanted, "2.png"])
    assert [store.read_uri(found.uri(name)) for name in found.found] == [b"2", b"1"]
    as_written = Folder.look(store.storage, place, {there, "2.png"})
    assert as_written.spelt == {}
    assert store.read_uri(as_written.uri(there)) == b"1"

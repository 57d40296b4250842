"""Archives: every member is found where it lies; whatever is not safe is refused by name."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tasks.artifacts.store import ArtifactStore
from tasks.sources.archives import NotRewritten, UnsafeArchive, add_member, gunzip_tar, members
from tasks.storage.byte_ranges import ByteRange, DamagedArchive, member_bytes, split_address

FILES = {
    "images/1.jpg": np.random.default_rng(0).bytes(5000),
    "images/2.jpg": b"plain text that deflates well " * 100,
    "images/empty.jpg": b"",
}


def zipped(files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(
    files: dict[str, bytes] = FILES, mode: str = "w", *extra: tarfile.TarInfo, **options: int
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def gunzipped(data: bytes) -> bytes:
    plain = io.BytesIO()
    gunzip_tar(io.BytesIO(data), len(data), plain, "a.tar.gz")
    return plain.getvalue()


def streamed(method: int) -> bytes:
    """A zip whose writer could not go back: every CRC is behind its data."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return pipe.getvalue()


ARCHIVES = {
    "deflated.zip": zipped(),
    "stored.zip": zipped(method=zipfile.ZIP_STORED),
    "streamed.zip": streamed(zipfile.ZIP_DEFLATED),
    "plain.tar": tarred(),
    "pax.tar": tarred({f"{'long/' * 50}{name}": data for name, data in FILES.items()}),
    "gnu.tar": tarred(format=tarfile.GNU_FORMAT),
    "gzip.tar": gunzipped(tarred(mode="w:gz")),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_members_are_read_in_place(store: ArtifactStore, name: str):
    data = ARCHIVES[name]
    uri = store.storage.uri(f"lake/{name}")
    store.storage.put(f"lake/{name}", data)
    with store.storage.reader(f"lake/{name}") as file:
        found = list(members(file, uri))
    read = {m.name.removeprefix("long/" * 50): store.read_uri(f"{uri}{m.where}") for m in found}
    assert read == FILES
    assert [m.num_bytes for m in found] == [len(data) for data in FILES.values()]


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return info


def zip_with(name: str, mode: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, "target")
    return buffer.getvalue()


def flagged(data: bytes) -> bytes:
    """The same zip, its one member marked as encrypted."""
    spoilt = bytearray(data)
    spoilt[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(spoilt)


def overlapping() -> bytes:
    """The second entry of the directory points at the data of the first."""
    data = bytearray(zipped({"a": b"x" * 100, "b": b"y" * 100}, zipfile.ZIP_STORED))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = (10).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", "1")
        archive.writestr("a.jpg", "2")
    return buffer.getvalue()


def flipped(data: bytes, at: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[at] ^= 1
    return bytes(spoilt)


def ended_at(data: bytes, num_members: int) -> int:
    """Where the header after so many members of a tar is."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        info = archive.getmembers()[num_members - 1]
    return info.offset_data + -(-info.size // 512) * 512


def ended(data: bytes) -> bytes:
    """A tar without its end block."""
    return data[: ended_at(data, len(FILES))]


BOMB = {"a.jpg": bytes(50_000_000)}


def long_header(kind: bytes, num_bytes: int = 3 << 20) -> bytes:
    """A tar whose first member has a name, or the like, of so many bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, num_bytes
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * num_bytes + tarred()


LONG_HEADERS = [
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zipped({"../evil.jpg": b"x"}), r"'../evil.jpg' would lie outside"),
        (lambda: zipped({"/evil.jpg": b"x"}), r"'/evil.jpg' would lie outside"),
        (lambda: zipped({"a\\..\\evil.jpg": b"x"}), r"would lie outside"),
        (lambda: zipped({"C:evil.jpg": b"x"}), r"would lie outside"),
        (lambda: zip_with("a.jpg", stat.S_IFLNK | 0o777), r"'a.jpg' is a link"),
        (lambda: zip_with("a.jpg", stat.S_IFIFO), r"'a.jpg' is a link or a device"),
        (twice, r"two members named 'a.jpg'"),
        (lambda: zipped(BOMB), r"'a.jpg' unpacks from \d+ to 50000000 bytes \(a bomb\)"),
        (overlapping, r"overlaps"),
        (lambda: zipped({"a": b""}).replace(b"a", b"\0"), r"'\\x00' would lie outside"),
        (lambda: flagged(zipped({"a.jpg": b"x"})), r"'a.jpg' is encrypted"),
        (lambda: zipped(method=zipfile.ZIP_LZMA), r"neither stored nor deflated"),
        (
            lambda: zipped({"\u00e9.jpg": b"x"}).replace("\u00e9".encode(), b"\xe9\xe9"),
            r"is damaged \('utf-8' codec can't decode byte 0xe9",
        ),
        (lambda: zipped()[:-60], r"is damaged .*; get it again"),
        (lambda: tarred({"../evil.jpg": b"x"}), r"'../evil.jpg' would lie outside"),
        (lambda: tarred({"/evil.jpg": b"x"}), r"'/evil.jpg' would lie outside"),
        (lambda: tarred({}, "w", special("a", tarfile.SYMTYPE)), r"'a' is a link"),
        (lambda: tarred({}, "w", special("a", tarfile.LNKTYPE)), r"'a' is a link"),
        (lambda: tarred({}, "w", special("a", tarfile.CHRTYPE)), r"'a' is a link or a device"),
        (lambda: tarred({"a": b"1"}, "w", tarfile.TarInfo("a")), r"two members named 'a'"),
        (lambda: tarred({"a": b"1"}, "w", tarfile.TarInfo("./a")), r"two members named 'a'"),
        (lambda: tarred()[:3000], r"is damaged"),
        (lambda: ended(tarred()), r"is damaged .*the end of the archive is missing"),
        (lambda: flipped(tarred(), ended_at(tarred(), 1)), r"is damaged \(bad checksum"),
        (lambda: b"not an archive", r"is no zip, tar or tar.gz"),
        (lambda: b"", r"is no zip, tar or tar.gz"),
    ],
)
def test_unsafe_and_damaged_archives_are_refused(make, message: str):
    with pytest.raises(UnsafeArchive, match=rf"^lake/a: .*{message}") as caught:
        list(members(io.BytesIO(make()), "lake/a"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tarred({"../evil": b"x"}, "w:gz"), r"would lie outside"),
        (lambda: tarred({}, "w:gz", special("a", tarfile.SYMTYPE)), r"is a link"),
        (lambda: tarred({"a": b"1"}, "w:gz", tarfile.TarInfo("a")), r"two members"),
        (lambda: tarred(BOMB, "w:gz"), r"more than 50 times its size \(a bomb\)"),
        (lambda: tarred(mode="w:gz")[:-2500], r"is damaged"),
        (lambda: tarred(mode="w:gz")[:-8], r"is damaged"),  # only the CRC and the length
        (lambda: flipped(tarred(mode="w:gz"), -8), r"is damaged \(CRC check failed"),
        (lambda: gzip.compress(ended(tarred())), r"is damaged .*the end of the archive is missing"),
    ],
)
def test_gzipped_tar_keeps_the_same_rules(make, message: str):
    with pytest.raises(UnsafeArchive, match=rf"^a.tar.gz: .*{message}"):
        gunzipped(make())


@pytest.mark.parametrize("kind", LONG_HEADERS)
@pytest.mark.parametrize("read", [gunzipped, lambda data: list(members(io.BytesIO(data), "a"))])
def test_no_header_of_a_tar_fills_the_memory(kind: bytes, read: Callable[[bytes], object]):
    """600 kB of a gzipped tar filled three gigabytes with one name."""
    data = long_header(kind)
    with pytest.raises(UnsafeArchive, match=r"headers of more than 1048576 bytes \(a bomb\)"):
        read(gzip.compress(data) if read is gunzipped else data)


def test_folders_count_as_what_a_gzipped_tar_unpacks_to():
    folder = special("folder", tarfile.DIRTYPE).tobuf()
    with pytest.raises(UnsafeArchive, match=r"more than 50 times its size \(a bomb\)"):
        gunzipped(gzip.compress(folder * 40_000 + tarred()))


def test_an_empty_zip_has_no_members():
    assert list(members(io.BytesIO(zipped({})), "a.zip")) == []


@pytest.mark.parametrize("read", [gunzipped, lambda data: list(members(io.BytesIO(data), "a"))])
def test_a_size_below_zero_is_refused(read: Callable[[bytes], object]):
    """Its bytes were those before it."""
    info = tarfile.TarInfo("a.jpg")
    info.size = -5
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)
    with pytest.raises(UnsafeArchive, match=r"'a.jpg' has a size below zero"):
        read(gzip.compress(data) if read is gunzipped else data)


def sparse_header(**said: str) -> bytes:
    """A tar whose header is that of a file with holes, or would be."""
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = said
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(10_240)


@pytest.mark.parametrize("read", [gunzipped, lambda data: list(members(io.BytesIO(data), "a"))])
@pytest.mark.parametrize(
    "data",
    [
        sparse_header(**{"GNU.sparse.map": "1,x"}),
        sparse_header(**{"GNU.sparse.size": "x"}),
        sparse_header(**{"GNU.sparse.size": "1", "GNU.sparse.offset": "9" * 5000}),
        sparse_header(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
        special("x", tarfile.XHDTYPE).tobuf() * 1500 + bytes(10_240),
    ],
    ids=["map", "size", "offset", "version", "headers of headers"],
)
def test_headers_without_sense_are_damage(read: Callable[[bytes], object], data: bytes):
    """They were tracebacks, and their numbers may fill pages."""
    with pytest.raises(UnsafeArchive, match=r"is damaged .{1,125}; get it again$"):
        read(gzip.compress(data) if read is gunzipped else data)


@pytest.mark.parametrize("read", [gunzipped, lambda data: list(members(io.BytesIO(data), "a"))])
def test_members_behind_a_damaged_extended_header_are_not_lost(read: Callable[[bytes], object]):
    """The archive seemed to end there, whole."""
    extended = special("headers", tarfile.XHDTYPE)
    extended.size = len(length_of_zero := b"0 path=b.jpg\n")
    damaged = extended.tobuf() + length_of_zero.ljust(tarfile.BLOCKSIZE, b"\0")
    data = special("folder", tarfile.DIRTYPE).tobuf() + damaged + tarred()
    with pytest.raises(UnsafeArchive, match=r"is damaged .*invalid header.*; get it again$"):
        read(gzip.compress(data) if read is gunzipped else data)


def test_thousands_of_little_files_beside_a_picture_are_no_bomb():
    """Their headers pack a hundred to one."""
    files = {f"{number}.txt": b"1" for number in range(3000)} | {
        "a.jpg": np.random.default_rng(0).bytes(10_000)
    }
    gunzipped(tarred(files, "w:gz"))


LATIN_1 = "caf\udce9"
"""How a name in bytes that are no UTF-8 is read."""


@pytest.mark.parametrize("name", [f"../{LATIN_1}.jpg", f"/{LATIN_1}.jpg", f"{LATIN_1}\\..\\x.jpg"])
def test_a_name_that_is_no_unicode_does_not_leave_the_folder_either(name: str):
    with pytest.raises(UnsafeArchive, match=r"would lie outside"):
        list(members(io.BytesIO(tarred({name: b"x"})), "lake/a"))
    with pytest.raises(UnsafeArchive, match=r"would lie outside"):
        gunzipped(tarred({name: b"x"}, "w:gz"))


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_name_that_is_no_unicode_is_a_name(format: int, is_packed: bool):
    """It was said to lie outside the folder, and with it the whole archive was refused."""
    files = {f"{LATIN_1}.txt": b"1", "a.jpg": b"2"}

    def names(*extra: tarfile.TarInfo) -> list[str]:
        data = tarred(files, "w:gz" if is_packed else "w", *extra, format=format)
        plain = gunzipped(data) if is_packed else data
        return [member.name for member in members(io.BytesIO(plain), "a.tar")]

    assert names() == list(files)
    with pytest.raises(UnsafeArchive, match=r"two members named 'caf\\udce9.txt'"):
        names(tarfile.TarInfo(f"{LATIN_1}.txt"))
    with pytest.raises(UnsafeArchive, match=r"'caf\\udce9.jpg' is a link or a device"):
        names(special(f"{LATIN_1}.jpg", tarfile.SYMTYPE))


@pytest.mark.parametrize("end", ["#bytes=0-{}", "#zip=0-9,{}"])
def test_a_range_beyond_all_files_is_part_of_a_name(end: str):
    """One such image among many questions ended them all with a traceback."""
    address = "a.png" + end.format("9" * 5000)
    assert split_address(address) == (address, None)


def test_a_gap_behind_a_member_is_not_read_with_it():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", b"first")
        buffer.seek(0, io.SEEK_END)
        buffer.write(bytes(1 << 20))
        archive.start_dir = buffer.tell()
        archive.writestr("b.jpg", b"second")
    data = buffer.getvalue()
    found = [member.where for member in members(io.BytesIO(data), "a.zip")]
    assert found[0].stop - found[0].start < 1 << 18
    read = [member_bytes(data[where.start : where.stop], where) for where in found]
    assert read == [b"first", b"second"]


def test_a_member_inflates_to_no_more_than_a_picture_would():
    """Whatever the archive's directory says it does."""
    data = zipped(BOMB)
    num_packed = zipfile.ZipFile(io.BytesIO(data)).infolist()[0].compress_size
    entry = data[: data.index(b"PK\x01\x02")]
    with pytest.raises(DamagedArchive, match=r"inflates to more than \d{7} bytes"):
        member_bytes(entry, ByteRange(0, len(entry), num_packed))


def test_member_that_was_replaced_is_damaged(file_store: ArtifactStore, tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(zipped())
    with (tmp_path / "a.zip").open("rb") as file:
        first, second, _ = members(file, "a.zip")
    (tmp_path / "a.zip").write_bytes(b"PK" + zipped())
    with pytest.raises(DamagedArchive, match="is no zip entry"):
        file_store.read_uri(f"{tmp_path}/a.zip{first.where}")
    (tmp_path / "a.zip").write_bytes(zipped()[: second.where.stop - 100])
    with pytest.raises(DamagedArchive, match="ends early"):
        file_store.read_uri(f"{tmp_path}/a.zip{second.where}")


@pytest.mark.parametrize("make", [zipped, streamed])
def test_flipped_bit_of_a_zip_member_is_found(make):
    data = make(method=zipfile.ZIP_STORED)
    first = next(iter(members(io.BytesIO(data), "a.zip"))).where
    name = len(next(iter(FILES)))
    spoilt = flipped(data, first.start + 30 + name + 1)[first.start : first.stop]
    with pytest.raises(DamagedArchive, match="not those that were packed"):
        member_bytes(spoilt, first)
    assert member_bytes(data[first.start : first.stop], first) == next(iter(FILES.values()))


def test_a_full_disk_is_not_a_damaged_archive():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        add_member(archive, "a.jpg", 1 << 20, io.BytesIO(os.urandom(1 << 20)))
    num_packed = packed.tell()
    packed.seek(0)
    with (
        pytest.raises(NotRewritten, match=r"cannot .*No space left.*; make room") as caught,
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        gunzip_tar(packed, num_packed, full, "a.tar.gz")
    assert "damaged" not in str(caught.value)

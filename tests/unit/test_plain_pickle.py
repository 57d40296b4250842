"""The restricted unpickler: plain data of any protocol and NumPy comes back, nothing else does."""

import collections
import io
import os
import pickle
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdrpn_core.interop.plain_pickle import RefusedPickle, UnreadablePickle, load_plain

ARRAYS = [
    np.arange(6, dtype=np.float16).reshape(2, 3),
    np.linspace(0, 1, 576),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([1, -2], dtype=">i4"),
    np.array([True, False]),
    np.array(["a", "b\u00e9"]),
    np.array([b"x", b"yz"]),
    np.zeros((0, 24)),
    np.array(0.5),
]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def dumps_as_numpy_1(content: object, protocol: int, patch: pytest.MonkeyPatch) -> bytes:
    """What NumPy 1 wrote: the same functions under the names they had."""
    for function in (np._core.multiarray._reconstruct, np._core.multiarray.scalar):
        patch.setattr(function, "__module__", "numpy.core.multiarray")
    patch.setattr(np._core.numeric._frombuffer, "__module__", "numpy.core.numeric")
    with patch.context() as quiet:
        quiet.setattr("warnings.warn", lambda *args, **kwargs: None)
        return pickle.dumps(content, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_arrays_of_every_protocol(array: np.ndarray, protocol: int) -> None:
    (loaded,) = load_plain(pickle.dumps([array], protocol), "labels.pkl")
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_that_numpy_1_wrote(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"map": np.arange(4, dtype=np.float16), "score": np.float64(0.25)}
    data = dumps_as_numpy_1(content, protocol, monkeypatch)
    assert b"numpy.core" in data
    assert b"numpy._core" not in data
    loaded = load_plain(data, "labels.pkl")
    np.testing.assert_array_equal(loaded["map"], content["map"])
    assert loaded["score"] == 0.25


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_of_every_protocol(protocol: int) -> None:
    shared = [1, 2]
    content = {
        "text": "a\u2028b",
        "numbers": (1, -(2**70), 0.5, 1j, True, None),
        "sets": [{1, 2}, frozenset({3})],
        "bytes": [b"\x00\xff", bytearray(b"ab")],
        "ordered": collections.OrderedDict(a=shared),
        "shared": shared,
        "scalars": [np.int64(7), np.float32(0.5), np.str_("x"), np.bool_(True)],
    }
    assert load_plain(pickle.dumps(content, protocol), "labels.pkl") == content


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_malicious_pickle_is_refused_by_name_and_runs_nothing(
    protocol: int, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps([{"question_id": Call(os.system, f"touch {canary}")}], protocol)
    with pytest.raises(RefusedPickle, match=r"evil\.pkl: refused, .* (posix|nt)\.system"):
        load_plain(data, "evil.pkl")
    assert not canary.exists()
    pickle.loads(data)  # noqa: S301 -- an ordinary unpickler runs it
    assert canary.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Call(eval, "1"), "builtins.eval"),
        (Call(getattr, [], "append"), "builtins.getattr"),
        (torch.zeros(2), "torch._utils._rebuild_tensor_v2"),
        (Path("x"), "pathlib"),
        (np.array([object()]), "numpy.dtype('O8')"),
        (np.zeros(2, dtype=[("a", "f4")]), "numpy.dtype('V4')"),
        (np.datetime64("2024"), "numpy.dtype('M8')"),
        (np.random.default_rng(0), "numpy.random"),
        (np.ma.masked_array([1.0]), "numpy.ma"),
        (Call(bytes.__init__, b""), "builtins.getattr"),
    ],
)
def test_anything_else_is_refused_by_name(content: object, name: str) -> None:
    with pytest.raises(RefusedPickle, match=re.escape(name)):
        load_plain(pickle.dumps(content), "labels.pkl")


def test_a_codec_other_than_the_one_for_old_bytes_is_refused() -> None:
    data = b"c_codecs\nencode\n(Vabc\nVzlib_codec\ntR."
    with pytest.raises(RefusedPickle, match="zlib_codec"):
        load_plain(data, "labels.pkl")


@pytest.mark.parametrize("name", [b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct"])
@pytest.mark.parametrize("state", [b"}", b"N}\x86", b"}Vx\nVy\ns"])
def test_functions_cannot_be_changed(name: bytes, state: bytes) -> None:
    with pytest.raises(UnreadablePickle, match="damaged"):
        load_plain(b"\x80\x02c" + name + b"\n" + state + b"b.", "labels.pkl")


def test_a_persistent_id_is_refused() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "weights" if obj == "x" else None

    buffer = io.BytesIO()
    Pickler(buffer).dump(["x"])
    with pytest.raises(RefusedPickle, match="weights"):
        load_plain(buffer.getvalue(), "labels.pkl")


def test_an_array_must_have_the_bytes_of_its_shape() -> None:
    data = pickle.dumps(np.zeros(3), 2)
    huge = data.replace(b"K\x03\x85", b"J" + struct.pack("<i", 2**31 - 1) + b"\x85")
    assert huge != data
    with pytest.raises(UnreadablePickle, match=r"damaged pickle .* with 24 bytes"):
        load_plain(huge, "labels.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_anywhere_is_an_error_of_one_line(protocol: int) -> None:
    data = pickle.dumps([{"map": np.arange(40.0), "text": "x" * 50}], protocol)
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(UnreadablePickle, match=r"^labels\.pkl: ") as error:
            load_plain(data[:length], "labels.pkl")
        assert "\n" not in str(error.value)
    with pytest.raises(UnreadablePickle, match=r"cut short|not a pickle"):
        load_plain(data[:-1], "labels.pkl")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>", "not a pickle"),
        (b"PK\x03\x04 a zip file", "not a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\x80\x04\x95garbage.", "pickle"),
    ],
)
def test_other_files_are_explained(data: bytes, message: str) -> None:
    with pytest.raises(UnreadablePickle, match=message):
        load_plain(data, "labels.pkl")


@pytest.mark.parametrize("container", [list, tuple])
def test_what_is_shared_is_read_once(container: Callable[[Any], Any]) -> None:
    """Each level holds the one below twice: as a tree it would have 2**200 leaves."""
    nested: Any = container([np.arange(3)])
    for _ in range(200):
        nested = container([nested, nested])
    found = load_plain(pickle.dumps(nested), "labels.pkl")
    while len(found) == 2:
        assert found[0] is found[1]
        found = found[0]
    assert isinstance(found, container)
    np.testing.assert_array_equal(found[0], np.arange(3))


def test_a_list_that_holds_itself_is_no_data() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnreadablePickle, match="damaged"):
        load_plain(pickle.dumps(endless), "labels.pkl")


def copies_of(content: bytes, count: int) -> bytes:
    """A list of byte arrays, each made of the same content by six bytes."""
    head = b"\x80\x02cbuiltins\nbytearray\nq\x00B" + struct.pack("<I", len(content)) + content
    return head + b"q\x01](" + b"h\x00h\x01\x85R" * count + b"e."


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02})" + b"\x85" * 10_000 + b"Ns.", "key"),  # a million end the process
        (b"\x80\x02}N" + b"q\x00h\x00\x86" * 60 + b"Ns.", "key"),  # its hash had no end
        (b"\x80\x02cbuiltins\nset\n](KJ)\x85\x85e\x85R.", "key"),
        (b"\x80\x02}L" + b"9" * 4000 + b"L\nNs.", "key"),
        (copies_of(b"x" * 10_000, 1_000), "a few bytes"),
        (b"\x80\x02]q\x00" + b"(h\x00h\x00lq\x00" * 60 + b"Q.", "persistent id a list"),
        (b"\x80\x02c" + b"m" * 100_000 + b"\nname\n.", r"names m{200}\.\.\.,"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "cut short"),
        (b"\x80\x02cnumpy\ndtype\nVf8\n\x85R(KJ]NNNt" + b"b.", "byte order"),
        (b"\x80\x02cos\nsystem\n)\x81.", r"os\.system"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
    ],
)
def test_time_and_memory_are_in_proportion_to_the_file(data: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnreadablePickle, match=reason) as error:
            load_plain(data, "labels.pkl")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 | 200 * len(data)
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 500


def test_a_number_to_remember_by_takes_no_memory() -> None:
    """The standard library's reader made a table of that length, of two gigabytes."""
    tracemalloc.start()
    try:
        assert load_plain(b"\x80\x02Nr" + struct.pack("<I", (1 << 27) - 1) + b".", "a") is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()

"""Rules that hold for every source file."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.architecture.source_tree import CHECKOUT, LAYERS, Source, product, sources

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80

# Who may touch files by path. Everything else goes through the store.
OPENS_FILES = {
    "tasks/storage/storage.py": "the store",
    "tasks/storage/local_disk.py": "the store, where it is a folder",
    "tasks/fetching/partial_file.py": "downloads on their way, written at offsets",
    "tasks/storage/scratch_folders.py": "locks on folders for files on their way",
}
WRITES_FILES = {
    "flows/output_files.py": "--json and --output, on the user's own disk",
    "tasks/calibrate.py": "a profile and its evidence, on the user's own disk",
}
WRITERS_BY_FOLDER = ("sdrpn_core/reference/",)
"""Scenes and weights are written for people to look at, before there is any store."""

ABSOLUTE = re.compile(r"^(/(home|root|work|tmp|usr|opt|mnt|Users|data)/|[A-Za-z]:\\)")
GLOBAL_RANDOM = re.compile(
    r"(random|np\.random|numpy\.random)\.(?!default_rng|Generator|Random\b|SeedSequence)"
)


def every_file() -> tuple[Source, ...]:
    return sources("benchmarks", "configs", *{source.package for source in product()}, "tests")


def found_calls(names: set[str]) -> list[str]:
    return [
        f"{source.path}:{line} {name}(...)"
        for source in product()
        for line, name in source.calls
        if name in names or name.rpartition(".")[2] in {n[1:] for n in names if n[0] == "."}
    ]


def test_only_the_store_opens_files():
    opened = [call for call in found_calls({"open", "io.open", "os.open"})]
    assert [call for call in opened if call.partition(":")[0] not in OPENS_FILES] == []


def test_files_are_written_by_the_store():
    written = found_calls({".write_text", ".write_bytes", ".to_parquet", ".write_parquet"})
    allowed = {*OPENS_FILES, *WRITES_FILES}
    assert [
        call
        for call in written
        if call.partition(":")[0] not in allowed and not call.startswith(WRITERS_BY_FOLDER)
    ] == []


def test_nothing_is_pickled():
    modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    imported = [
        f"{source.path}:{line} {name}"
        for source in product()
        for line, name in source.imports
        if name.partition(".")[0] in modules
    ]
    loaded = found_calls({"torch.load", "torch.save", "numpy.load", "np.load"})
    # The reference model's trainer keeps resume points of its own, which nobody else reads.
    assert imported + [call for call in loaded if not call.startswith(WRITERS_BY_FOLDER)] == []


def test_no_shell():
    assert found_calls({"os.system", "os.popen", "subprocess.getoutput", "eval", "exec"}) == []


def test_no_absolute_paths():
    found = [
        f"{source.path}:{node.lineno} {node.value!r}"
        for source in every_file()
        if source.package != "tests"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and ABSOLUTE.match(node.value)
    ]
    assert found == []


def test_source_is_ascii():
    found = [
        f"{source.path}:{number}"
        for source in every_file()
        for number, line in enumerate(source.text.splitlines(), 1)
        if not line.isascii()
    ]
    assert found == []


@pytest.mark.parametrize("name", ["utils", "util", "misc", "helpers", "common", "tmp"])
def test_no_module_without_a_subject(name: str):
    assert [s.path for s in every_file() if s.module.rpartition(".")[2] == name] == []


def test_files_are_short():
    found = [f"{s.path}: {n}" for s in product() if (n := s.text.count("\n")) > MAX_FILE_LINES]
    assert found == []


def test_functions_are_short():
    found = []
    for source in every_file():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{source.path}:{node.lineno} {node.name}: {length}")
    assert found == []


def test_no_error_is_swallowed():
    """A bare `except`, or catching everything without raising again, hides defects.

    A thread hands its error to a future, which raises it in the caller's thread.
    """
    found = []
    for source in product():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            catches_all = node.type is None or ast.unparse(node.type) in {
                "Exception",
                "BaseException",
            }
            passes_on = any(
                isinstance(inner, ast.Raise)
                or (isinstance(inner, ast.Attribute) and inner.attr == "set_exception")
                for inner in ast.walk(node)
            )
            if catches_all and not passes_on:
                found.append(f"{source.path}:{node.lineno}")
    assert found == []


def test_numerics_use_no_global_random_numbers():
    found = [
        f"{source.path}:{line} {name}"
        for source in sources("sdrpn_core")
        for line, name in source.calls
        if GLOBAL_RANDOM.match(name)
    ]
    assert found == []


def test_every_file_beside_the_sources_is_packaged():
    """Configurations, weights and templates must reach users who install a wheel."""
    tool = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = ["*.py", *tool["setuptools"]["package-data"]["*"]]
    folders = [name.rstrip("*") for name in tool["setuptools"]["packages"]["find"]["include"]]
    files = {
        path.relative_to(CHECKOUT).as_posix()
        for folder in folders
        for path in (CHECKOUT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {f"{folder}/py.typed" for folder in LAYERS} <= files
    missing = [name for name in files if not any(Path(name).match(pattern) for pattern in patterns)]
    assert missing == []

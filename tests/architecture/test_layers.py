"""Imports point down only, and each kind of dependency has its one place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source_tree import CHECKOUT, LAYERS, Source, product, sources

STORAGE_DRIVERS = {"fsspec", "s3fs", "gcsfs", "boto3", "botocore", "aiobotocore", "huggingface_hub"}
FORBIDDEN = {
    "data_contracts": STORAGE_DRIVERS | {"prefect", "torch", "transformers", "PIL"},
    "sdrpn_core": STORAGE_DRIVERS | {"prefect", "matplotlib", "typer", "rich", "skimage.io"},
    "tasks": STORAGE_DRIVERS | {"prefect", "typer", "rich"},
    "flows": STORAGE_DRIVERS | {"torch", "transformers", "PIL", "numpy", "polars"},
}
DRIVERS = "tasks/storage/drivers.py"
PLACES = {
    DRIVERS: STORAGE_DRIVERS,
    "tasks/storage/http_driver.py": {"fsspec"},
    "tasks/storage/s3_driver.py": {"s3fs"},
    "sdrpn_core/models/hub.py": {"huggingface_hub"},
    "tasks/fetching/hub_remote.py": {"huggingface_hub"},
}
"""Where files and artifacts are read and written, where models and where data come from."""


OWN_MODULES = "modules of the layer itself"
TASK_PACKAGES = ("storage", "fetching", "artifacts", "sources", OWN_MODULES, "planning")
"""From the bottom up: stages stand on what they share, and plans look at them all."""
CORE_PACKAGES = (
    OWN_MODULES,
    "reference",
    "attention",
    "decoding",
    "models",
    "generation",
    "extraction",
    "rpn",
    "zoom",
    "pipeline",
    "benchmarks",
    "evaluation",
    "report",
    "interop",
    "calibration",
    "lmms_eval_plugin",
)
"""From the bottom up; ``pipeline`` is a module on top of the packages that it puts together."""


def violations(source: Source, forbidden: set[str]) -> list[str]:
    return [
        f"{source.path}:{line} imports {name}"
        for line, name in source.imports
        if any(name == banned or name.startswith(f"{banned}.") for banned in forbidden)
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_only(layer: str):
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"tests", "benchmarks"}
    assert [v for source in sources(layer) for v in violations(source, above)] == []


def climbing(source: Source, packages: tuple[str, ...], modules: set[str]) -> list[str]:
    """Imports of modules in a higher package of the same layer, for type checking too."""

    def floor(module: str) -> int:
        package = module.split(".")[1]
        return packages.index(package if package in packages else OWN_MODULES)

    return [
        f"{source.path}:{line} imports {name}"
        for line, name in source.imports
        if name in modules and floor(name) > floor(source.module)
    ]


@pytest.mark.parametrize(
    ("layer", "packages"), [("tasks", TASK_PACKAGES), ("sdrpn_core", CORE_PACKAGES)]
)
def test_packages_of_a_layer_stand_on_each_other_in_order(layer: str, packages: tuple[str, ...]):
    """So there is no cycle of packages."""
    inside = [source for source in sources(layer) if source.module != layer]
    folders = {source.path.split("/")[1] for source in inside if source.path.count("/") > 1}
    assert folders <= set(packages), "give the new package its place"
    modules = {source.module for source in inside}
    assert [found for source in inside for found in climbing(source, packages, modules)] == []


def test_flows_wire_tasks_and_never_reach_into_the_core():
    assert [v for source in sources("flows") for v in violations(source, {"sdrpn_core"})] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_uses_what_belongs_to_another(layer: str):
    found = [
        violation
        for source in sources(layer)
        for violation in violations(source, FORBIDDEN[layer] - PLACES.get(source.path, set()))
    ]
    assert found == []


def test_the_drivers_have_one_module():
    drivers = next(source for source in product() if source.path == DRIVERS)
    assert violations(drivers, {"fsspec"}) != []


def test_core_and_contracts_know_no_environment():
    found = [
        f"{source.path}:{line} {name}"
        for source in sources("data_contracts", "sdrpn_core")
        for line, name in [*source.imports, *source.calls]
        if name in {"os.environ", "os.getenv", "os.environ.get", "os.putenv"}
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("flows.__main__", {"typer", "pydantic"}),
        ("flows.cli", {"torch", "transformers", "prefect", "fsspec", "pyarrow"}),
        ("flows.execution", {"prefect", "torch", "transformers"}),
        ("sdrpn_core.pipeline", {"prefect", "fsspec"}),
        ("tasks.predict_files", {"torch", "transformers", "prefect"}),
        ("data_contracts.registry", {"torch", "prefect", "fsspec"}),
    ],
)
def test_importing_a_module_stays_light(module: str, absent: set[str]):
    """`sdrpn --help` and what is refused must not wait for torch, nor the pipeline for Prefect."""
    code = f"import sys, {module}; print(*sorted({sorted(absent)!r} & sys.modules.keys()))"
    code = code.replace(f"{sorted(absent)!r}", f"set({sorted(absent)!r})")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", ["ls", "gc"])
def test_looking_into_a_store_waits_for_no_model(tmp_path: Path, command: str):
    """Listing took three times as long as it does, for a function that writes sizes."""
    code = (
        "import sys; from flows.cli import app; "
        f"app(['artifacts', '{command}', '--store', sys.argv[1]], standalone_mode=False); "
        "print(*sorted({'torch', 'transformers', 'prefect'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
    ],
)
def test_threads_do_not_spin_on_cores_that_others_want(chosen: dict[str, str], expected: str):
    """A new user's training was some twenty times slower beside two other jobs."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    unset = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", f"import flows.cli, os; print(*map(os.environ.get, {names}))"],
        capture_output=True,
        text=True,
        check=True,
        env={**unset, **chosen, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.stdout.strip() == expected

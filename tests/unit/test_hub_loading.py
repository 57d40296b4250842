"""Models of a hub: pinned commits, and what users read when a model cannot be had."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_contracts.profiles import ModelProfile
from tests.hub_server import COMMIT, model_hub
from tests.tiny_models import tiny_llava

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("model"))


def load(profiles: list[ModelProfile], cache: Path, **environment: str) -> list[dict[str, Any]]:
    """Load each profile's model in one fresh process; what happened to each."""
    plain = json.dumps([profile.model_dump(mode="json") for profile in profiles])
    hidden = {"HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.load_models", plain],
        env=inherited | {"HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Loading weights" not in run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def named(profile: ModelProfile, model_id: str, revision: str | None = None) -> ModelProfile:
    return profile.model_copy(update={"model_id": model_id, "revision": revision})


@dataclass(frozen=True)
class Outcomes:
    """What became of each model."""

    online: dict[str, dict[str, Any]]
    offline: dict[str, dict[str, Any]]
    unreachable: dict[str, Any]
    endpoint: str


@pytest.fixture(scope="module")
def outcomes(profile: ModelProfile, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Each process imports the whole library, so that all loads share three of them."""
    cache, torn = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("torn")
    shutil.copytree(profile.model_id, torn, dirs_exist_ok=True)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    bare = tmp_path_factory.mktemp("bare")
    shutil.copytree(
        profile.model_id,
        bare,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*processor_config.json"),
    )
    whole = Path(profile.model_id)
    models = {"lab/tiny": whole, "lab/shut": whole, "lab/torn": torn, "lab/bare": bare}
    tried = {
        "unpinned": named(profile, "lab/tiny"),
        "pinned": named(profile, "lab/tiny", COMMIT),
        "wrong revision": named(profile, "lab/tiny", "v9"),
        "gated": named(profile, "lab/shut"),
        "missing": named(profile, "lab/nowhere"),
        "torn": named(profile, "lab/torn", "main"),
        "bare": named(profile, "lab/bare"),
    }
    with model_hub(models, gated=("lab/shut",)) as endpoint:
        found = load(list(tried.values()), cache, HF_ENDPOINT=endpoint)
    # From here on nothing listens on the endpoint's port.
    again = [
        named(profile, "lab/tiny"),
        named(profile, "lab/other", "v1"),
        named(profile, "lab/bare"),
    ]
    offline = load(again, cache, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1")
    (unreachable,) = load([named(profile, "lab/other")], cache, HF_ENDPOINT=endpoint)
    return Outcomes(
        online=dict(zip(tried, found, strict=True)),
        offline=dict(zip(("cached", "absent", "partly"), offline, strict=True)),
        unreachable=unreachable,
        endpoint=endpoint,
    )


def assert_says(outcome: dict[str, Any], *texts: str) -> None:
    assert "\n" not in outcome["error"]
    for text in texts:
        assert text in outcome["error"]


def test_an_unpinned_model_is_warned_about_and_keeps_its_commit(outcomes: Outcomes) -> None:
    unpinned = outcomes.online["unpinned"]
    assert unpinned["revision"] == COMMIT
    assert unpinned["log"].splitlines() == [
        "lab/tiny is loaded without a pinned revision; to keep these weights, set in profile "
        f"tiny-llava: revision: {COMMIT}"
    ]


def test_a_pinned_model_loads_without_a_word(outcomes: Outcomes) -> None:
    assert outcomes.online["pinned"] == {"revision": COMMIT, "draft": None, "log": ""}


def test_models_that_the_hub_does_not_give(outcomes: Outcomes) -> None:
    hub = outcomes.endpoint
    assert_says(
        outcomes.online["wrong revision"],
        "model 'lab/tiny' has no revision 'v9'",
        "set `revision` in the profile",
        f"{hub}/lab/tiny",
    )
    assert_says(
        outcomes.online["gated"],
        "model 'lab/shut' is gated",
        f"accept its terms at {hub}/lab/shut",
        "`hf auth login` or set HF_TOKEN",
    )
    assert_says(
        outcomes.online["missing"],
        f"model 'lab/nowhere' is not on the hub at {hub}, or is private",
        "check its name",
    )


def test_calibration_explains_what_cannot_be_had_as_loading_does(outcomes: Outcomes) -> None:
    unavailable = [
        *(outcomes.online[name] for name in ("wrong revision", "gated", "missing")),
        outcomes.offline["absent"],
        outcomes.unreachable,
    ]
    for outcome in unavailable:
        assert outcome["draft"] == outcome["error"]


def test_torn_weights_are_named_with_their_remedy(outcomes: Outcomes) -> None:
    assert_says(
        outcomes.online["torn"],
        "model 'lab/torn' has corrupted weights (model.safetensors: ",
        "`hf download lab/torn --revision main --force-download`",
    )


def test_a_file_that_the_repository_lacks_is_named(outcomes: Outcomes) -> None:
    assert_says(outcomes.online["bare"], "model 'lab/bare' cannot be loaded", "image processor")


def test_offline_takes_the_cache_and_says_what_is_not_in_it(outcomes: Outcomes) -> None:
    assert outcomes.offline["cached"]["revision"] == COMMIT
    assert_says(
        outcomes.offline["absent"],
        "model 'lab/other' is not in the cache",
        "HF_HUB_OFFLINE is set",
        "run `hf download lab/other --revision v1` with a network first",
    )


def test_what_is_only_partly_in_the_cache_is_fetched_with_a_network(outcomes: Outcomes) -> None:
    """It was told to check the id and its files, which were right."""
    assert_says(
        outcomes.offline["partly"],
        "model 'lab/bare' is only partly in the cache",
        "image processor",
        "HF_HUB_OFFLINE is set: run `hf download lab/bare` with a network first",
    )


def test_a_hub_that_cannot_be_reached(outcomes: Outcomes) -> None:
    assert_says(
        outcomes.unreachable,
        f"the hub at {outcomes.endpoint} cannot be reached",
        "check the network and HF_ENDPOINT",
    )

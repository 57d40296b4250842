"""Labels from the data set's own answers, from ``sdrpn run`` down to a conversation's turns."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig
from data_contracts.sources import LlavaMixSource
from flows.cli import app
from tasks import recipes
from tasks.artifacts.store import ArtifactStore
from tasks.given_responses import conversations
from tests.mixes import write_image
from tests.pipelines import write_tiny_pipeline
from tests.tiny_models import tiny_llava

NUM_TALKS = 6
SILENT, LONG = "1.png", "2.png"


def write_talks(folder: Path) -> LlavaMixSource:
    """One to three turns about each image; one turn without an answer, one long answer."""
    records = []
    for number in range(NUM_TALKS):
        name = f"{number}.png"
        write_image(folder / name, number, (40 + number, 30))
        talk = []
        for turn in range(1 + number % 3):
            answer = "a " * 60 if name == LONG and turn == 1 else f"red word {'a ' * turn}"
            marker = "<image>\n" if turn == 0 else ""
            talk.append({"from": "human", "value": f"{marker}what is it ? {'a ' * turn}"})
            if not (name == SILENT and turn == 0):
                talk.append({"from": "gpt", "value": answer})
        records.append({"id": str(number), "image": name, "conversations": talk})
    (folder / "mix.json").write_text(json.dumps(records))
    return LlavaMixSource(name="talks", records=f"{folder}/mix.json", images=str(folder))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline that takes the data set's answers, up to the trained RPN and its report."""
    folder = tmp_path_factory.mktemp("given")
    plain = write_tiny_pipeline(folder).model_dump(mode="json")
    profile = tiny_llava(folder / "model").model_copy(
        update={"next_turn": "</s> USER: {question} ASSISTANT:"}
    )
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    plain |= {
        "sources": [write_talks(folder / "talks").model_dump(mode="json")],
        "records": {"turns": "all", "rows_per_shard": 4},
        "extraction": {
            "responses": "dataset",
            "max_conversation_tokens": 80,
            "rows_per_shard": 3,
        },
        "evaluation": None,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.fixture(scope="module")
def made(config: Path) -> tuple[ArtifactStore, dict[str, ArtifactRef]]:
    store = ArtifactStore(str(config.parent / "store"))
    summary = config.parent / "summary.json"
    options = ["--config", str(config), "--store", store.root, "--json", str(summary)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        result = CliRunner().invoke(app, ["run", *options])
    assert result.exit_code == 0, result.output
    named = json.loads(summary.read_text())["artifacts"]
    return store, {
        stage: ArtifactRef.parse(next(iter(refs.values()))) for stage, refs in named.items()
    }


def test_every_answered_turn_has_a_map_and_the_others_say_why(made):
    store, refs = made
    rows = store.read_frame(refs["extract-attention"])
    assert rows.height == sum(1 + number % 3 for number in range(NUM_TALKS))
    problems = {
        (Path(row["image_uri"]).name, row["status"], row["reason"])
        for row in rows.filter(pl.col("status") != "ok").iter_rows(named=True)
    }
    assert {(name, status) for name, status, _ in problems} == {
        (SILENT, "empty_response"),
        (LONG, "overlong_response"),
    }
    answered = rows.filter(pl.col("status") == "ok")
    assert answered.select(pl.col("response") == pl.col("answers").list.first()).to_series().all()
    # Later turns are asked in the context of the earlier ones: no two maps of an image are equal.
    assert answered["grounding"].n_unique() == answered.height
    labels = store.read_frame(refs["make-labels"])
    assert set(labels.filter(pl.col("status") == "ok")["question_id"]) <= set(
        answered["question_id"]
    )
    assert store.is_committed(refs["train-rpn"])


@pytest.mark.parametrize("num_shards", [1, 3, 5, 20])
def test_conversations_are_never_cut_and_all_are_there(made, num_shards: int):
    store, refs = made
    shares = [
        conversations(store, refs["build-jsonl"], num_shards, index) for index in range(num_shards)
    ]
    talks = [talk for share in shares for talk in share]
    assert len(talks) == NUM_TALKS
    for talk in talks:
        assert [turn["turn"] for turn in talk] == list(range(len(talk)))
        assert len({turn["image_uri"] for turn in talk}) == 1
    usable = store.read_frame(refs["build-jsonl"]).filter(pl.col("status") == "ok")
    asked = sorted(turn["question_id"] for talk in talks for turn in talk)
    assert asked == sorted(usable["question_id"])


@pytest.mark.parametrize("num_shards", [2, 3, 5])
def test_shares_are_even_but_for_whole_conversations(made, num_shards: int):
    """Once the first share had all of them, and the other workers nothing to do."""
    store, refs = made
    sizes = [
        sum(map(len, conversations(store, refs["build-jsonl"], num_shards, index)))
        for index in range(num_shards)
    ]
    longest = 3
    assert max(sizes) - min(sizes) <= longest


def test_the_length_of_generated_answers_is_no_part_of_its_identity(config: Path, made):
    store, refs = made
    given = PipelineConfig.load(config).extraction
    manifest = store.manifest(refs["build-jsonl"])

    def ref(**changes: object) -> ArtifactRef:
        settings = given.model_copy(update=changes)
        return recipes.attention_recipe(manifest, settings, {}, "</s>{question}").ref

    assert ref() == ref(max_new_tokens=9)
    others = [ref(), ref(max_conversation_tokens=9), ref(responses="generated")]
    assert len(set(others)) == 3

"""Labels from the data set's own answers, from ``sdrpn run`` down to a conversation's turns."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import PipelineConfig, RecordsConfig
from data_contracts.sources import LlavaMixSource
from flows.cli import app
from tasks import recipes
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.extract_attention import attention_recipe
from tasks.given_responses import conversations
from tasks.unanswered import NoAnswers, require_answers, warn_of_unanswered
from tests.artifacts import shard_reads, stage_run
from tests.mixes import mix_record, write_image
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


def questions_of(
    store: ArtifactStore, folder: Path, records: list[dict[str, Any]], **settings: Any
) -> ArtifactRef:
    """Questions of some records about two images."""
    for number, name in enumerate(("a.png", "b.png")):
        write_image(folder / name, number)
    (folder / "mix.json").write_text(json.dumps(records))
    source = LlavaMixSource(name="m", records=f"{folder}/mix.json", images=str(folder))
    run = stage_run(store)
    return build_jsonl(run, download(run, source), source, RecordsConfig(turns="all", **settings))


def asked(store: ArtifactStore, questions: ArtifactRef) -> list[list[str]]:
    """What each conversation asks."""
    talks = conversations(store, questions, 1, 0)
    return sorted([turn["question"] for turn in talk] for talk in talks)


SHARED = [
    mix_record("1", "a.png", "A0 ?", "A1 ?", "A2 ?"),
    mix_record("1", "a.png", "B0 ?"),
    mix_record("1", "a.png", "C0 ?"),
]
ALONE = [mix_record("1", "b.png", "D0 ?", "D1 ?"), mix_record("2", "a.png", "E0 ?", "E1 ?")]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (SHARED, [["A0 ?"], ["A1 ?"], ["A2 ?"], ["B0 ?"], ["C0 ?"]]),
        # A's first turn says nothing and is not asked; still its second does not come after B's.
        (
            [mix_record("1", "a.png", "<image>", "A1 ?"), mix_record("1", "a.png", "B0 ?")],
            [["A1 ?"], ["B0 ?"]],
        ),
        # A record that is there twice is one.
        ([mix_record("1", "a.png", "A0 ?", "A1 ?")] * 2, [["A0 ?", "A1 ?"]]),
    ],
)
def test_no_turn_is_asked_after_one_of_another_record(
    memory_store: ArtifactStore, tmp_path: Path, records: list, expected: list
):
    """Records of one id and image had their turns mixed: A's were asked after C's first."""
    questions = questions_of(memory_store, tmp_path, [*records, *ALONE], tolerated_failures=9)
    whole = [["D0 ?", "D1 ?"], ["E0 ?", "E1 ?"]]
    assert asked(memory_store, questions) == sorted([*expected, *whole])


def test_turns_of_a_draw_are_asked_on_their_own(memory_store: ArtifactStore, tmp_path: Path):
    """What a draw left of two records looked like one: A's second turn came after B's first."""
    records = [*SHARED, *ALONE]
    everything = questions_of(memory_store, tmp_path, records, max_records=9)
    assert ["E0 ?", "E1 ?"] in asked(memory_store, everything), "nothing is left out"
    assert ["A1 ?"] in asked(memory_store, everything)
    for max_records in range(2, 9):
        drawn = questions_of(memory_store, tmp_path, records, max_records=max_records)
        found = asked(memory_store, drawn)
        assert len(found) == max_records
        assert all(len(talk) == 1 for talk in found)


def test_only_attention_of_mixed_turns_is_made_again(
    memory_store: ArtifactStore, tmp_path: Path, config: Path, made
):
    """What was made of records that share nothing, or of first turns, is right and stays."""
    store, refs = made
    given = PipelineConfig.load(config)

    def marks(records: list[dict[str, Any]], **changes: Any) -> bool:
        settings = given.extraction.model_copy(update=changes)
        questions = questions_of(memory_store, tmp_path, records)
        recipe = attention_recipe(stage_run(memory_store), questions, given.model, settings)
        return "mixed_turns" in recipe.config

    assert marks(SHARED)
    assert not marks(SHARED, responses="generated")
    assert not marks(ALONE)
    assert not marks([mix_record("1", "a.png", "A0 ?"), mix_record("1", "a.png", "B0 ?")])
    made_before = {"model", "responses", "max_conversation_tokens", "next_turn", "shares"}
    assert set(store.manifest(refs["extract-attention"]).recipe.config) == made_before


def test_only_attention_of_answers_that_lacked_a_space_is_made_again(config: Path, made):
    store, refs = made
    given = PipelineConfig.load(config).extraction
    manifest = store.manifest(refs["build-jsonl"])

    def marks(family: str, prompt: str, next_turn: str | None = None, **changes: Any) -> bool:
        model = {"family": family, "prompt": prompt}
        settings = given.model_copy(update=changes)
        recipe = recipes.attention_recipe(
            manifest, settings, model, next_turn, has_mixed_turns=False
        )
        return "answers" in recipe.config

    assert marks("deepseek_vl", "{images}{question} Assistant:")
    assert not marks("deepseek_vl", "{images}{question} Assistant:", responses="generated")
    assert not marks("deepseek_vl", "{images}{question}\n")
    assert not marks("llava", "{images}{question} ASSISTANT:")
    # Profiles of one's own: the prompt's end decides, for the first turn or for those after it.
    assert marks("qwen2_vl", "{images}{question} Answer:")
    assert marks("qwen2_vl", "{images}{question}\n", next_turn="\n{question} Answer:")
    assert not marks("gemma4_unified", "{images}{question}<channel|>")


def test_answers_that_are_not_there_are_told(
    config: Path, made: Any, memory_store: ArtifactStore, tmp_path: Path
):
    """All questions were asked, and training ended for want of labels: "use more records"."""
    source = write_talks(tmp_path)
    mix = tmp_path / "mix.json"
    talks = json.loads(mix.read_text())
    for talk in talks:
        talk["conversations"] = [turn for turn in talk["conversations"] if turn["from"] == "human"]
    mix.write_text(json.dumps(talks))
    plain = PipelineConfig.load(config)
    run = stage_run(memory_store)
    questions = build_jsonl(run, download(run, source), source, plain.records)
    told = (
        r"not one of its 12 questions has a reference answer, so no label .* \"gpt\", or leave that"
    )
    with pytest.raises(NoAnswers, match=told):
        attention_recipe(run, questions, plain.model, plain.extraction)


def test_one_answer_is_enough_to_know(config: Path, made: Any, reads: Counter[str]):
    """All questions were read, and read again for what is to be known of all."""
    store, refs = made
    require_answers(store, refs["build-jsonl"], "talks", "", "")
    assert shard_reads(store, refs["build-jsonl"], reads) == [1, 0]


def test_questions_without_an_answer_are_counted(
    memory_store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source, run = write_talks(tmp_path), stage_run(memory_store)
    records = build_jsonl(run, download(run, source), source, RecordsConfig(turns="all"))
    warn_of_unanswered(memory_store, records, "talks", "give no labels")
    told = "talks: 1 of 12 questions have no reference answer and give no labels"
    assert caplog.messages == [told]


def test_the_length_of_generated_answers_is_no_part_of_its_identity(config: Path, made):
    store, refs = made
    given = PipelineConfig.load(config).extraction
    manifest = store.manifest(refs["build-jsonl"])

    def ref(**changes: object) -> ArtifactRef:
        settings = given.model_copy(update=changes)
        return recipes.attention_recipe(
            manifest, settings, {}, "</s>{question}", has_mixed_turns=False
        ).ref

    assert ref() == ref(max_new_tokens=9)
    others = [ref(), ref(max_conversation_tokens=9), ref(responses="generated")]
    assert len(set(others)) == 3

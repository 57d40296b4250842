"""Choosing without boxes, the exhaustive best, and sink rules on planted sinks."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Glm4vConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, Qwen2_5_VLConfig

from data_contracts.calibration import CalibrationSettings
from data_contracts.enums import QuestionKind, RoiLabel
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection, ModelProfile, plain_regions
from data_contracts.settings_files import ConfigError
from data_contracts.sink_rules import SinkDimensions
from sdrpn_core.calibration.comparison import (
    BOXES,
    EXHAUSTIVE,
    HINDSIGHT,
    UNSUPERVISED,
    compare_methods,
)
from sdrpn_core.calibration.draft import draft_profile
from sdrpn_core.calibration.examples import AttentionMaps, CalibrationError
from sdrpn_core.calibration.exhaustive import best_of_all_sets, check_number_of_sets
from sdrpn_core.calibration.label_search import search_labels, search_unsupervised
from sdrpn_core.calibration.planted import planted_sink_scores
from sdrpn_core.calibration.scoring import LabelScorer, head_set, mean_map
from sdrpn_core.calibration.unsupervised import elbow, massive_sinks, spatial_entropy
from sdrpn_core.models.families import FAMILIES
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tests.planted_attention import SHAPE, planted_maps, quiet_hidden_states
from tests.tiny_models import tiny_llava

TEXTUAL, NATURAL = QuestionKind.TEXTUAL, QuestionKind.NATURAL
LABELS = LabelSettings(sink_threshold=None)
SETTINGS = CalibrationSettings(
    num_head_candidates=6,
    num_sink_candidates=24,
    sink_levels=(1.0, 1.5, 2.0, 4.0),
    foreground_thresholds=(0.1, 0.2, 0.4, 0.6),
    exhaustive_heads=2,
)


def louder(maps: AttentionMaps, head: tuple[int, int], factor: float) -> AttentionMaps:
    """A head that gives more of its attention to the image."""
    response = maps.response.clone()
    response[:, head[0], head[1]] *= factor
    return replace(maps, response=response)


def test_compact_maps_have_low_entropy() -> None:
    spot = np.zeros((6, 6), np.float32)
    spot[1:3, 1:3] = 1.0
    two = spot.copy()
    two[4:6, 4:6] = 1.0
    assert spatial_entropy(spot) == 0.0
    assert spatial_entropy(two) == pytest.approx(np.log(2))
    diagonal = np.eye(6, dtype=np.float32)
    assert spatial_entropy(diagonal) == 0.0, "corners touch: parts are 8-connected"
    assert spatial_entropy(np.ones((6, 6), np.float32)) == pytest.approx(np.log(36))


def test_elbow_separates_the_few_from_the_many() -> None:
    values = np.array([0.9, 0.02, 0.8, 0.01, 0.03, 0.02, 0.85, 0.01], np.float32)
    limit = elbow(values)
    assert (values > limit).sum() == 3
    assert elbow(np.ones(5, np.float32)) == 1.0


def test_unsupervised_finds_the_planted_head_and_looks_at_no_box() -> None:
    maps = louder(planted_maps(sharpness=3.0), (3, 1), 0.9)
    quiet = replace(maps, response=maps.response * 0.3)
    quiet.response[:, 3, 1] = maps.response[:, 3, 1]
    settings = SETTINGS.model_copy(update={"num_unsupervised_heads": 1})
    found = search_unsupervised(quiet, LABELS, settings)
    assert [head_set(s.grounding) for s in found.choice.heads.values()] == [((3, 1),)] * 2
    blind = replace(quiet, inside=~quiet.inside, overlapping=~quiet.overlapping)
    assert search_unsupervised(blind, LABELS, settings) == found
    assert found.choice.labels == LABELS, "thresholds stay as they are"


def test_unsupervised_leaves_out_a_compact_head_that_ignores_the_question() -> None:
    maps = planted_maps(sharpness=3.0)
    response = maps.response * 0.3
    response[:, 3, 1] = maps.response[:, 3, 1]
    response[:, 5, 0] = 0.0
    response[:, 5, 0, 2, 2] = 1.0
    changed = replace(maps, response=response)
    settings = SETTINGS.model_copy(update={"num_unsupervised_heads": 1})
    found = search_unsupervised(changed, LABELS, settings)
    scores = {(s.layer, s.head): s for s in found.scores[TEXTUAL]}
    assert scores[5, 0].spatial_entropy == 0.0
    assert scores[5, 0].votes == 0.0
    assert scores[3, 1].votes == 1.0


def test_massive_values_are_sinks_without_boxes() -> None:
    maps = replace(planted_maps(), hidden=quiet_hidden_states(40))
    every = np.ones(40, dtype=bool)
    assert massive_sinks(maps, every) is None
    signal = SinkDimensions(layer=2, dimensions=(5,))
    hidden = {signal: maps.hidden[signal].clone()}
    hidden[signal][:, 0, 0] = 30.0
    rule = massive_sinks(replace(maps, hidden=hidden), every)
    assert rule is not None
    assert [(term.signal, term.threshold) for term in rule.terms] == [(signal, 20.0)]
    everywhere = {signal: torch.full_like(hidden[signal], 30.0)}
    assert massive_sinks(replace(maps, hidden=everywhere), every) is None, (
        "what all have is no sink"
    )


def test_exhaustive_best_is_the_best_by_plain_enumeration() -> None:
    """Single heads, enumerated with label making called one set at a time."""
    maps = planted_maps(18, sharpness=0.6)
    settings = SETTINGS.model_copy(update={"exhaustive_heads": 1})
    best = best_of_all_sets(maps, LABELS, settings)
    rows = maps.of_kind(NATURAL) & ~maps.unseen
    scores = {}
    for layer, head in product(range(6), range(4)):
        for threshold in settings.foreground_thresholds:
            labels = LABELS.model_copy(
                update={
                    "foreground_ratio_threshold": threshold,
                    "background_ratio_threshold": min(threshold, 0.1),
                }
            )
            made = make_pseudo_labels(mean_map(maps, ((layer, head),)), None, labels).labels
            foreground = (made == RoiLabel.FOREGROUND)[rows]
            inside = maps.inside[rows]
            hits = (foreground & inside).sum()
            scores[layer, head, threshold] = 2 * hits / (foreground.sum() + inside.sum())
    winner = best.chosen[NATURAL]
    assert winner.f1 == pytest.approx(max(scores.values()))
    assert scores[(*winner.heads[0], winner.foreground_ratio_threshold)] == pytest.approx(winner.f1)


def test_calibration_comes_close_to_the_exhaustive_best() -> None:
    noisy = [(1, 0), (2, 1), (3, 2)]
    maps = planted_maps(60, grounding={TEXTUAL: noisy, NATURAL: noisy}, sharpness=0.6)
    scorer = LabelScorer(maps)
    choices = {
        BOXES: search_labels(scorer, LabelSettings(), SETTINGS).choice,
        UNSUPERVISED: search_unsupervised(maps, LABELS, SETTINGS).choice,
    }
    scores = {score.method: score for score in compare_methods(scorer, choices, SETTINGS)}
    assert list(scores) == [BOXES, UNSUPERVISED, EXHAUSTIVE, HINDSIGHT]
    assert scores[BOXES].unseen.f1 >= 0.95 * scores[EXHAUSTIVE].unseen.f1
    # Chosen with the answers known: nothing that may differ by kind can be better.
    assert scores[HINDSIGHT].unseen.f1 >= scores[EXHAUSTIVE].unseen.f1 - 0.02
    for heads in scores[EXHAUSTIVE].heads.values():
        assert set(head_set(heads)) <= set(noisy)


def test_too_many_sets_are_refused_before_any_is_tried() -> None:
    settings = SETTINGS.model_copy(update={"exhaustive_heads": 6})
    with pytest.raises(CalibrationError, match=r"190050 sets .* lower exhaustive_heads"):
        check_number_of_sets(24, settings)
    check_number_of_sets(24, SETTINGS)


def test_every_sink_rule_removes_planted_sinks() -> None:
    maps = replace(planted_maps(), hidden=quiet_hidden_states(40))
    choice = search_labels(LabelScorer(maps), LabelSettings(), SETTINGS).choice
    scores = planted_sink_scores(maps, choice, SETTINGS)
    single = [score for score in scores if len(score.rule.terms) == 1]
    tried = {(score.kind, score.rule.terms[0].signal.rule) for score in single}
    signals = ("heads", "layer_mean", "hidden_norm", "dimensions")
    assert tried == set(product((TEXTUAL, NATURAL), signals))
    for score in single:
        assert score.found == 1.0, score.rule
        assert score.with_rule.centre_precision > score.without.centre_precision + 0.1, score.rule
        assert score.with_rule.recall >= score.without.recall, score.rule
        assert score.gain > SETTINGS.min_gain
    assert {score.kind for score in scores if score.is_kept} == {TEXTUAL, NATURAL}
    combined = {score.rule.rule for score in scores if len(score.rule.terms) == 2}
    assert combined == {"any", "all"}


def test_sinks_cannot_be_planted_where_every_head_grounds() -> None:
    """It was a StopIteration, after the branch layers had been trained."""
    maps = replace(planted_maps(), hidden=quiet_hidden_states(40))
    choice = search_labels(LabelScorer(maps), LabelSettings(), SETTINGS).choice
    layers, heads = SHAPE
    all_heads = {layer: tuple(range(heads)) for layer in range(layers)}
    every = {kind: HeadSelection(grounding=all_heads) for kind in choice.heads}
    with pytest.raises(
        CalibrationError, match=r"all \d+ heads .* lower max_heads, or set planted_s"
    ):
        planted_sink_scores(maps, replace(choice, heads=every), SETTINGS)


def test_a_model_without_a_profile_takes_its_familys(tmp_path: Path) -> None:
    tiny_llava(tmp_path / "mine")
    draft = draft_profile(str(tmp_path / "mine"))
    family = FAMILIES["llava"].defaults
    assert (draft.name, draft.family, draft.prompt) == ("mine", "llava", family.prompt)
    assert (draft.num_layers, draft.heads, draft.labels) == (6, {}, LabelSettings())
    assert not draft.is_calibrated


def test_a_known_model_keeps_what_its_profile_says() -> None:
    draft, known = draft_profile("reference"), load_profile("reference")
    assert (draft.prompt, draft.rpn.depth) == (known.prompt, known.rpn.depth)
    assert draft.regions == known.regions
    assert draft.heads == {}
    assert draft.labels == LabelSettings()


def write_config(folder: Path, config: PreTrainedConfig) -> str:
    """A folder with no more than a draft wants of a model."""
    config.save_pretrained(folder)
    return str(folder)


def same_size(known: ModelProfile, **changed: int) -> dict[str, int]:
    """Layers and heads of a text model."""
    return {
        "num_hidden_layers": known.num_layers,
        "num_attention_heads": known.num_heads,
        "hidden_size": 8 * known.num_heads,
        **changed,
    }


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llava-1.5-7b", LlavaConfig),
        ("qwen2.5-vl-7b", Qwen2_5_VLConfig),
        ("reference", LlavaConfig),
    ],
)
def test_a_local_copy_is_asked_as_the_model_it_is_a_copy_of(
    name: str, config: type[PreTrainedConfig], tmp_path: Path
) -> None:
    known = load_profile(name)
    kind = {} if name.startswith("qwen") else {"model_type": "llama"}
    copy = write_config(tmp_path / "mine", config(text_config=kind | same_size(known)))
    draft = draft_profile(copy)
    assert (draft.name, draft.model_id, draft.revision) == ("mine", copy, None)
    assert (draft.heads, draft.labels) == ({}, LabelSettings())
    kept = ("family", "prompt", "next_turn", "images", "extraction_instructions", "rpn")
    for field in kept:
        assert getattr(draft, field) == getattr(known, field), field
    # What makes the zoom cheaper was measured on the known model's weights only.
    assert draft.regions == plain_regions(known.images)
    larger = kind | same_size(known, num_hidden_layers=known.num_layers + 1)
    draft = draft_profile(write_config(tmp_path / "larger", config(text_config=larger)))
    assert draft.prompt == FAMILIES[known.family].defaults.prompt
    assert (draft.next_turn, draft.extraction_instructions) == (None, {})


def test_a_copy_that_may_be_of_several_models_is_asked_as_their_family_is(tmp_path: Path) -> None:
    """GLM-4.6V-Flash was asked as GLM-4.1V is, of the same size and earlier by name: its answer was
    begun for it with a mark that it does not write."""
    thinking, flash = load_profile("glm-4.1v-9b"), load_profile("glm-4.6v-flash")
    assert same_size(thinking) == same_size(flash)
    text = same_size(flash) | {"num_key_value_heads": 2}
    draft = draft_profile(write_config(tmp_path / "mine", Glm4vConfig(text_config=text)))
    assert draft.prompt == FAMILIES["glm4v"].defaults.prompt == flash.prompt != thinking.prompt
    assert draft.next_turn == flash.next_turn


def test_a_prompt_that_no_profile_can_have_was_a_traceback(tmp_path: Path) -> None:
    """Beside a packaged profile it was even taken, and failed when the model was asked."""
    models = [tmp_path / "known", tmp_path / "unknown"]
    known = load_profile("llava-1.5-7b")
    llama = {"model_type": "llama", **same_size(known)}
    write_config(models[0], LlavaConfig(text_config=llama))
    write_config(models[1], LlavaConfig(text_config=llama | {"num_hidden_layers": 5}))
    for model in models:
        with pytest.raises(ConfigError, match=r"prompt must contain \{question\} exactly once"):
            draft_profile(str(model), prompt="{images} what is it?")


def test_a_model_that_no_adapter_drives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"of family 'llama', .* known are aya_vision, "):
        draft_profile(write_config(tmp_path, LlamaConfig()))

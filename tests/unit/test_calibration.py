"""Calibration on planted attention, where the right answer is known, and on a tiny random model."""

import re
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_contracts.calibration import BranchTraining, CalibrationSettings
from data_contracts.enums import QuestionKind, RoiLabel
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import ModelProfile, RpnShape
from data_contracts.sink_rules import SinkCombination, SinkHeads, SinkLayerMean
from sdrpn_core.calibration import (
    CalibrationError,
    CalibrationObserver,
    calibrate,
    draft_profile,
    scene_examples,
)
from sdrpn_core.calibration.branch import (
    BranchScore,
    ComparedBranches,
    _with_choice,
    branch_candidates,
    compare_branches,
)
from sdrpn_core.calibration.denoising import score_denoising
from sdrpn_core.calibration.examples import AttentionMaps, capture_maps
from sdrpn_core.calibration.heads import select_heads
from sdrpn_core.calibration.label_search import LabelSearch
from sdrpn_core.calibration.label_search import search_labels as search_scorer
from sdrpn_core.calibration.page import render_markdown, render_page
from sdrpn_core.calibration.planted import sink_cells
from sdrpn_core.calibration.profile_file import profile_yaml
from sdrpn_core.calibration.scoring import (
    LabelQuality,
    LabelScorer,
    grouped,
    head_set,
    score_heads,
)
from sdrpn_core.calibration.tables import MEASURES
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from tests.planted_attention import SHAPE, planted_maps, quiet_hidden_states
from tests.tiny_models import NUM_HEADS, NUM_LAYERS, tiny_llava

TEXTUAL, NATURAL = QuestionKind.TEXTUAL, QuestionKind.NATURAL
SETTINGS = CalibrationSettings(
    num_head_candidates=6,
    num_sink_candidates=3,
    sink_levels=(1.0, 4.0),
    foreground_thresholds=(0.1, 0.2, 0.4, 0.6),
)


def search_labels(maps: AttentionMaps, settings: CalibrationSettings = SETTINGS) -> LabelSearch:
    return search_scorer(LabelScorer(maps), LabelSettings(), settings)


def found_heads(search: LabelSearch) -> dict[QuestionKind, list[tuple[int, int]]]:
    return {kind: list(head_set(s.grounding)) for kind, s in search.choice.heads.items()}


def unseen(maps: AttentionMaps, search: LabelSearch) -> LabelQuality:
    return search.choice.counts(LabelScorer(maps)).quality(maps.unseen)


def test_planted_grounding_head_is_found() -> None:
    maps = planted_maps()
    search = search_labels(maps)
    assert found_heads(search) == {TEXTUAL: [(3, 1)], NATURAL: [(3, 1)]}
    quality = unseen(maps, search)
    assert quality.centre_precision > 0.95
    assert quality.recall > 0.95
    scores = score_heads(LabelScorer(maps), search.choice.labels, maps.of_kind(TEXTUAL))
    best = max(scores, key=lambda score: score.foreground.f1)
    assert (best.layer, best.head) == (3, 1)
    assert best.points_inside == 1.0


def test_kinds_get_heads_of_their_own_when_these_are_better() -> None:
    maps = planted_maps(grounding={TEXTUAL: [(4, 0)], NATURAL: [(2, 3)]})
    search = search_labels(maps)
    assert found_heads(search) == {TEXTUAL: [(4, 0)], NATURAL: [(2, 3)]}


def test_heads_whose_noise_averages_out_are_combined() -> None:
    """One head alone gives noisy labels; the mean of several planted ones is cleaner."""
    noisy = [(1, 0), (2, 1), (3, 2), (4, 3)]
    maps = planted_maps(grounding={TEXTUAL: noisy, NATURAL: noisy}, sharpness=0.6)
    search = search_labels(maps)
    for heads in found_heads(search).values():
        assert len(heads) > 1
        assert set(heads) <= set(noisy)


def test_noise_is_never_added_to_a_good_head() -> None:
    for seed in range(3):
        search = search_labels(planted_maps(seed=seed))
        assert found_heads(search) == {TEXTUAL: [(3, 1)], NATURAL: [(3, 1)]}


def test_a_head_that_only_helps_where_it_was_picked_is_not_added() -> None:
    """The overfitting that halves guard against: a head that is perfect on one half alone."""
    maps = planted_maps(sharpness=0.6)
    half, other = maps.halves
    exact = torch.from_numpy(maps.inside.astype(np.float32)) / 4
    response = maps.response.clone()
    response[torch.from_numpy(half), 5, 2] = exact[torch.from_numpy(half)]
    scorer = LabelScorer(replace(maps, response=response))
    labels = LabelSettings(sink_threshold=None)

    lucky, honest = scorer.foreground(((5, 2),), labels), scorer.foreground(((3, 1),), labels)
    assert lucky.gain(honest, [half]) > SETTINGS.min_gain
    assert select_heads(scorer, labels, [half], SETTINGS).heads[-1] == (5, 2)
    assert select_heads(scorer, labels, [half, other], SETTINGS).heads == ((3, 1),)


def test_planted_sink_is_found_and_removed() -> None:
    cells = ((0, 7), (7, 0))
    maps = planted_maps(sink_cells=cells, sink_heads=((1, 2),))
    search = search_labels(maps)
    by_head = [score for score in search.sinks if score.rule.terms[0].signal.rule == "heads"]
    assert by_head
    assert all(s.rule.terms[0].signal == SinkHeads(heads={1: (2,)}) for s in by_head)
    kept = [score for score in search.sinks if score.is_kept]
    assert {score.kind: score.rule for score in kept} == {
        kind: selection.sink for kind, selection in search.choice.heads.items()
    }
    assert {score.kind for score in kept} == {TEXTUAL, NATURAL}
    for score in kept:
        assert score.with_rule.centre_precision > score.without.centre_precision + 0.1
        assert score.question_dependence is not None
        assert score.question_dependence < 0.05
    assert search.choice.labels.sink_threshold == 1.0
    for labels in search.choice.training_labels(maps):
        assert all(labels[cell] != RoiLabel.FOREGROUND for cell in cells)
    scorer = LabelScorer(maps)
    steps = score_denoising(scorer, search.choice.heads, search.choice.labels, maps.unseen)
    precision = {(s.kind, s.step): s.centre_precision for s in steps}
    assert precision[TEXTUAL, "sinks"] > precision[TEXTUAL, "padding"] + 0.1


def test_layer_mean_is_a_sink_rule_too() -> None:
    whole_layer = tuple((0, head) for head in range(SHAPE[1]))
    maps = planted_maps(sink_cells=((0, 7), (7, 0)), sink_heads=whole_layer)
    search = search_labels(maps, SETTINGS.model_copy(update={"num_sink_candidates": 0}))
    for selection in search.choice.heads.values():
        assert isinstance(selection.sink, SinkCombination)
        assert [term.signal for term in selection.sink.terms] == [SinkLayerMean(layer=0)]


def test_a_signal_that_follows_the_question_is_no_sink() -> None:
    """A head that shows all but the true region would clean labels, and is no sink."""
    maps = planted_maps(sink_cells=((0, 7), (7, 0)))
    elsewhere = torch.from_numpy(~maps.inside).float()
    response = maps.response.clone()
    response[:, 2, 2] = elsewhere / elsewhere.sum(dim=(1, 2), keepdim=True)
    hidden = quiet_hidden_states(maps.num_questions)
    search = search_labels(replace(maps, response=response, hidden=hidden))
    signals = [term.signal for score in search.sinks for term in score.rule.terms]
    assert signals
    assert SinkHeads(heads={2: (2,)}) not in signals


def test_no_sink_rule_where_none_helps() -> None:
    maps = planted_maps(sink_cells=((0, 7), (7, 0)), sink_heads=((1, 2),), is_leaking=False)
    search = search_labels(maps)
    assert all(selection.sink is None for selection in search.choice.heads.values())
    assert search.choice.labels.sink_threshold is None
    assert search.sinks
    assert not any(score.is_kept for score in search.sinks)


def test_paper_thresholds_are_kept_without_clear_benefit() -> None:
    search = search_labels(planted_maps())
    assert search.choice.labels.foreground_ratio_threshold == 0.2
    assert search.choice.labels.background_ratio_threshold == 0.1
    tried = {score.foreground_ratio_threshold for score in search.thresholds}
    assert tried == set(SETTINGS.foreground_thresholds)


def test_foreground_threshold_rises_where_labels_are_imprecise() -> None:
    """Noise up to 37 % of the peak: at 0.2 the foreground is all over, every sample is rejected."""
    maps = planted_maps(sharpness=0.4)
    search = search_labels(maps)
    assert search.choice.labels.foreground_ratio_threshold > 0.2
    assert unseen(maps, search).overlap_precision >= SETTINGS.min_precision


def test_search_is_deterministic() -> None:
    first, second = (search_labels(planted_maps(sharpness=0.5)) for _ in range(2))
    assert first == second


def test_parts_never_share_an_image() -> None:
    maps = planted_maps()
    parts = (*maps.halves, maps.unseen)
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts), 1)
    for one, other in combinations(parts, 2):
        assert not set(maps.image_indices[one]) & set(maps.image_indices[other])
    for part in parts:
        for kind in (TEXTUAL, NATURAL):
            assert (part & maps.of_kind(kind)).any()


def test_head_sets_round_trip() -> None:
    heads = ((1, 0), (1, 3), (4, 2))
    assert head_set(grouped(heads)) == heads
    assert grouped(heads) == {1: (0, 3), 4: (2,)}


def test_lowest_branch_layer_within_tolerance_is_kept() -> None:
    scores = [
        BranchScore(branch_layer=layer, f1=f1, auc=0.9)
        for layer, f1 in ((1, 0.5), (2, 0.795), (3, 0.8), (4, 0.7))
    ]
    kept = [s.branch_layer for s in _with_choice(scores, tolerance=0.01) if s.is_kept]
    assert kept == [2]


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(2, (1,)), (6, (1, 2, 3)), (9, (1, 2, 3, 4, 5, 6)), (32, (1, 7, 12, 18, 23, 29))],
)
def test_branch_candidates_leave_room_for_the_rpn(
    num_layers: int, expected: tuple[int, ...]
) -> None:
    profile = _profile(num_layers)
    assert branch_candidates(profile, CalibrationSettings()) == expected


def test_branch_candidates_end_the_rpn_where_there_are_heads() -> None:
    having_heads = range(3, 32, 4)
    found = branch_candidates(_profile(32), CalibrationSettings(), having_heads=having_heads)
    assert found == (1, 5, 13, 17, 21, 29)
    assert all(branch + 2 in having_heads for branch in found)
    one = CalibrationSettings(num_branch_candidates=1)
    assert branch_candidates(_profile(6), one, having_heads=(1, 4)) == (2,)
    assert branch_candidates(_profile(6), one, having_heads=(1,)) == ()


def _profile(num_layers: int) -> ModelProfile:
    return ModelProfile(
        name="x",
        family="llava",
        model_id="x",
        num_layers=num_layers,
        num_heads=4,
        prompt="{images}{question}",
        heads={},
        rpn=RpnShape(branch_layer=1, depth=1),
        source="test",
    )


TINY_SETTINGS = CalibrationSettings(
    num_scenes=12,
    max_new_tokens=64,
    num_branch_candidates=2,
    branch_training=BranchTraining(num_epochs=1, batch_size=8),
)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("calibration") / "tiny"
    tiny_llava(directory)
    return str(directory)


def test_a_new_model_gets_a_profile_that_loads(tiny_model: str, tmp_path: Path) -> None:
    """The whole way: draft, scenes, calibration, file, adapter."""
    draft = draft_profile(tiny_model)
    assert (draft.num_layers, draft.num_heads) == (NUM_LAYERS, NUM_HEADS)
    assert draft.heads == {}
    adapter = load_adapter(draft, device="cpu")
    examples = list(scene_examples(TINY_SETTINGS))
    told: list[tuple[int, int]] = []
    result = calibrate(
        adapter,
        examples,
        TINY_SETTINGS,
        batch_size=8,
        source="test",
        observer=CalibrationObserver(
            on_progress=lambda done, total: told.append((done, total)),
        ),
    )
    assert told == sorted(told)
    assert {total for _, total in told} == {3 * len(examples)}, "two branch layers"
    assert told[-1][0] == told[-1][1]
    assert set(result.profile.heads) == {TEXTUAL, NATURAL}
    assert result.profile.rpn.branch_layer in (1, 3)
    assert result.profile.rpn.depth == 3
    assert len(result.evidence.head_scores[NATURAL]) == NUM_LAYERS * NUM_HEADS
    assert result.heat_map().count("<title>") == 2 * NUM_LAYERS * NUM_HEADS
    for page in (render_page(result), render_markdown(result)):
        assert MEASURES in page
        assert "centre precision" in page
        assert not re.search(r"(?<!centre )(?<!touch )precision", page, flags=re.IGNORECASE)

    path = tmp_path / "profile.yaml"
    path.write_text(profile_yaml(result.profile, "how it came about"), encoding="utf-8")
    assert load_profile(str(path)) == result.profile
    load_adapter(load_profile(str(path)), device="cpu")


def test_a_comparison_of_branches_goes_on_where_it_stopped_if_labels_are_the_same(
    tiny_model: str,
) -> None:
    """An hour of a large model's trainings must not be lost; scores on other labels must be."""
    adapter = load_adapter(draft_profile(tiny_model), device="cpu")
    examples = list(scene_examples(TINY_SETTINGS))
    label = np.zeros((5, 5), np.int8)
    label[1:3, 2:4] = 1

    def compared(
        label: np.ndarray, earlier: ComparedBranches | None = None
    ) -> tuple[list[BranchScore], list[ComparedBranches]]:
        told: list[ComparedBranches] = []
        scores = compare_branches(
            adapter,
            examples,
            [label] * len(examples),
            TINY_SETTINGS,
            batch_size=8,
            earlier=earlier,
            on_branch=told.append,
        )
        return scores, told

    scores, told = compared(label)
    assert [len(each.scores) for each in told] == [1, 2]
    again, told_again = compared(label, told[0])
    assert again == scores
    assert told_again == told[1:]
    assert compared(label, told[1]) == (scores, [])
    _, told_of_others = compared(label.T.copy(), told[1])
    assert len(told_of_others) == 2


def test_captured_maps_do_not_depend_on_batching(tiny_model: str) -> None:
    adapter = load_adapter(draft_profile(tiny_model), device="cpu")
    examples = list(scene_examples(TINY_SETTINGS))[:8]
    one, many = (
        capture_maps(adapter, examples, max_new_tokens=64, batch_size=size) for size in (1, 8)
    )
    assert one.kinds == many.kinds
    np.testing.assert_array_equal(one.inside, many.inside)
    torch.testing.assert_close(one.response, many.response, rtol=1e-4, atol=1e-6)


def test_unusable_answers_are_reported_not_calibrated_on(tiny_model: str) -> None:
    adapter = load_adapter(draft_profile(tiny_model), device="cpu")
    examples = list(scene_examples(TINY_SETTINGS))[:8]
    told = r"only 0 of 8 .* can be used: 0 were empty, 8 had no end after 1 .* raise max_new_tokens"
    with pytest.raises(CalibrationError, match=told):
        capture_maps(adapter, examples, max_new_tokens=1, batch_size=8)


def test_numbers_that_are_not_finite_are_not_calibrated_on(tiny_model: str) -> None:
    """The advice was to look at the prompt, or to allow longer answers."""
    adapter = load_adapter(draft_profile(tiny_model), device="cpu", dtype="float16")
    with torch.no_grad():
        adapter.decoder.layers[-1].mlp.down_proj.weight.fill_(torch.inf)
    examples = list(islice(scene_examples(TINY_SETTINGS), 3))
    with pytest.raises(CalibrationError, match=r"3 of 3 questions: .*take bfloat16"):
        capture_maps(adapter, examples, max_new_tokens=2, batch_size=3)


def test_scene_examples_depend_on_settings_only() -> None:
    settings = CalibrationSettings(num_scenes=12, seed=3)
    first, second = (list(scene_examples(settings)) for _ in range(2))
    assert [e.request.question for e in first] == [e.request.question for e in second]
    assert [e.true_boxes for e in first] == [e.true_boxes for e in second]
    assert max(np.bincount([e.image_index for e in first])) <= settings.questions_per_scene


def test_a_model_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be loaded: .*check the id, the revision"):
        draft_profile(str(tmp_path))


def test_sinks_that_no_cell_is_left_for_are_refused() -> None:
    """NumPy said what it cannot take a sample of."""
    maps = planted_maps()
    crowded = replace(maps, inside=np.ones_like(maps.inside))
    told = f"true boxes leave 0 of {maps.grid.num_cells} cells for planted sinks: lower print_scale"
    with pytest.raises(CalibrationError, match=told):
        sink_cells(crowded, np.random.default_rng(0))

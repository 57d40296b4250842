"""Calibration of a random model of every family: whatever it finds is a profile that works."""

import pytest

from data_contracts.calibration import BranchTraining, CalibrationSettings
from data_contracts.sink_rules import SinkCombination, SinkDimensions, SinkHiddenNorm, SinkTerm
from sdrpn_core.calibration import (
    CalibrationExample,
    calibrate,
    draft_profile,
    scene_examples,
)
from sdrpn_core.extraction.generated_answers import capture_attention, extract_attention
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from tests.families.conftest import Loaded

pytestmark = pytest.mark.timeout(600)

SETTINGS = CalibrationSettings(
    num_scenes=30,
    max_new_tokens=64,
    num_head_candidates=4,
    num_sink_candidates=2,
    num_branch_candidates=1,
    branch_training=BranchTraining(num_epochs=1, batch_size=8),
)


def answered(loaded: Loaded) -> list[CalibrationExample]:
    """Examples that the random model answers with some tokens and an end; many it does not."""
    examples = list(scene_examples(SETTINGS))
    requests = [example.request for example in examples]
    found = capture_attention(loaded.adapter, requests, {}, max_new_tokens=SETTINGS.max_new_tokens)
    pairs = zip(examples, found.responses, strict=True)
    return [example for example, answer in pairs if answer.tokens and answer.is_finished]


def test_calibration_gives_a_profile_that_extracts(loaded: Loaded) -> None:
    """Every sink signal of the hidden states included, which the random model has no use for."""
    examples = answered(loaded)
    found = calibrate(loaded.adapter, examples, SETTINGS, batch_size=8, source="test")
    assert set(found.profile.heads) == {example.request.kind for example in examples}
    assert found.profile.rpn.branch_layer >= max(loaded.adapter.num_deepstack_layers, 1)
    signals = (SinkHiddenNorm(layer=1), SinkDimensions(layer=1, dimensions=(0, 3)))
    sink = SinkCombination(
        rule="any", terms=tuple(SinkTerm(signal=signal, threshold=2.0) for signal in signals)
    )
    heads = {
        kind: selection.model_copy(update={"sink": sink})
        for kind, selection in found.profile.heads.items()
    }
    labels = found.profile.labels.model_copy(update={"sink_threshold": 1.0})
    adapter = load_adapter(
        found.profile.model_copy(update={"heads": heads, "labels": labels}), device="cpu"
    )
    rows = extract_attention(adapter, [e.request for e in examples[:8]], max_new_tokens=64)
    usable = [row for row in rows if row.grounding is not None]
    assert usable
    for row in usable:
        assert row.sink is not None
        assert row.sink.shape == row.grid
        assert row.sink.isfinite().all()


def test_draft_knows_the_family_and_its_counts(loaded: Loaded) -> None:
    known = loaded.adapter.profile
    draft = draft_profile(known.model_id)
    assert draft.family == known.family
    assert (draft.num_layers, draft.num_heads) == (known.num_layers, known.num_heads)
    assert not draft.is_calibrated
    if loaded.name == "mistral3":  # a tower of 10 cells a side, less than half of any real one's
        with pytest.raises(ModelError, match="24 cells a side, and the model's tower takes 10"):
            load_adapter(draft, device="cpu")
        draft = draft.model_copy(update={"images": known.images})
    load_adapter(draft, device="cpu")

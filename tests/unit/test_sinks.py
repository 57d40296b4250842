"""Sink rules: what each signal is, and how they combine, from a model's own forward pass."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from data_contracts.enums import QuestionKind
from data_contracts.label_settings import LabelSettings
from data_contracts.profiles import HeadSelection, ModelProfile
from data_contracts.sink_rules import (
    SinkCombination,
    SinkDimensions,
    SinkHeads,
    SinkHiddenNorm,
    SinkLayerMean,
    SinkRule,
    SinkTerm,
)
from sdrpn_core.calibration.dimensions import find_sink_dimensions
from sdrpn_core.extraction.generated_answers import ExtractedAttention, Request, extract_attention
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tests.tiny_models import tiny_llava

KIND = QuestionKind.NATURAL
GROUNDING = {2: (0, 3), 4: (1,)}
PLANTED = 7
"""Cell of the 5x5 grid."""
DIMENSION = 11
NORM = SinkHiddenNorm(layer=0)
DIMENSIONS = SinkDimensions(layer=0, dimensions=(3, DIMENSION))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ModelProfile:
    return tiny_llava(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def request_() -> Request:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    return Request(Image.fromarray(pixels), "what is it ?", KIND)


def with_rule(
    profile: ModelProfile, rule: SinkRule | None, threshold: float | None = 1.0
) -> ModelProfile:
    changed = profile.model_copy(
        update={
            "heads": {KIND: HeadSelection(grounding=GROUNDING, sink=rule)},
            "labels": LabelSettings(sink_threshold=threshold),
        }
    )
    return ModelProfile.model_validate(changed.model_dump())


def extract(adapter: ModelAdapter, request: Request, *, is_planted: bool) -> ExtractedAttention:
    """One answer; a planted sink is an image token with one huge dimension."""
    (features,) = adapter.encode_images([request.image])
    if is_planted:
        tokens = features.tokens.clone()
        tokens[PLANTED, DIMENSION] = 100 * tokens.abs().max()
        features = replace(features, tokens=tokens)
    (found,) = extract_attention(adapter, [request], max_new_tokens=20, features=[features])
    return found


def sink_of(
    profile: ModelProfile, request: Request, rule: SinkRule, *, is_planted: bool = False
) -> torch.Tensor:
    adapter = load_adapter(with_rule(profile, rule), device="cpu")
    found = extract(adapter, request, is_planted=is_planted)
    assert found.sink is not None, found.reason
    assert found.sink.shape == (5, 5)
    assert found.sink.dtype == torch.float32
    return found.sink


@pytest.mark.parametrize(
    ("rule", "threshold"), [(NORM, 5.0), (DIMENSIONS, 5.0)], ids=["norm", "dimensions"]
)
def test_hidden_state_rules_find_a_planted_sink_and_labels_leave_it_out(
    profile: ModelProfile, request_: Request, rule: SinkRule, threshold: float
) -> None:
    adapter = load_adapter(with_rule(profile, rule, threshold), device="cpu")
    clean = extract(adapter, request_, is_planted=False)
    spoilt = extract(adapter, request_, is_planted=True)
    labels = adapter.profile.labels
    assert clean.sink is not None
    assert spoilt.sink is not None
    assert spoilt.grounding is not None
    assert not (clean.sink >= threshold).any()
    # All attention on the sink: without the rule it is the only foreground there is.
    grounding = 0.001 * spoilt.grounding
    grounding.view(-1)[PLANTED] = 1.0
    before = make_pseudo_labels(grounding[None], None, labels)
    after = make_pseudo_labels(grounding[None], spoilt.sink[None], labels)
    assert np.flatnonzero(before.labels == 1).tolist() == [PLANTED]
    assert np.flatnonzero(after.sink_mask).tolist() == [PLANTED]
    assert after.labels.ravel()[PLANTED] != 1


def test_hidden_signals_are_what_they_are_called(profile: ModelProfile, request_: Request) -> None:
    """Against the stock model's own hidden states."""
    adapter = load_adapter(profile, device="cpu")
    prompt = adapter.embed_prompt(request_.question, adapter.encode_images([request_.image]))
    with torch.inference_mode():
        states = adapter.model.model.language_model(
            inputs_embeds=prompt.embeds[None], output_hidden_states=True
        ).hidden_states
    for layer in (0, 3):
        tokens = states[layer][0, prompt.image_columns()]
        norm = tokens.norm(dim=1)
        largest = (tokens / tokens.pow(2).mean(dim=1, keepdim=True).sqrt()).abs()[:, [3, 11]]
        found = sink_of(profile, request_, SinkHiddenNorm(layer=layer))
        torch.testing.assert_close(found.flatten(), norm / norm.median())
        found = sink_of(profile, request_, SinkDimensions(layer=layer, dimensions=(3, 11)))
        torch.testing.assert_close(found.flatten(), largest.amax(dim=1))


def test_combinations_are_any_and_all_of_their_terms(
    profile: ModelProfile, request_: Request
) -> None:
    signals = [SinkHeads(heads={1: (2,)}), SinkLayerMean(layer=5), NORM, DIMENSIONS]
    singles = [sink_of(profile, request_, signal, is_planted=True) for signal in signals]
    # Each term alone calls some cells sinks and others not.
    limits = [float(found.quantile(0.7)) for found in singles]
    expected = torch.stack([f >= limit for f, limit in zip(singles, limits, strict=True)])
    terms = tuple(
        SinkTerm(signal=signal, threshold=limit)
        for signal, limit in zip(signals, limits, strict=True)
    )
    for how, cells in (("any", expected.any(dim=0)), ("all", expected.all(dim=0))):
        rule = SinkCombination(rule=how, terms=terms)
        found = sink_of(profile, request_, rule, is_planted=True)
        assert (found >= 1.0).tolist() == cells.tolist(), how
    assert not torch.equal(expected.any(dim=0), expected.all(dim=0))


def test_a_batch_gives_what_its_samples_give(profile: ModelProfile, request_: Request) -> None:
    terms = tuple(SinkTerm(signal=signal, threshold=2.0) for signal in (NORM, DIMENSIONS))
    rule = SinkCombination(rule="any", terms=terms)
    adapter = load_adapter(with_rule(profile, rule), device="cpu")
    requests = [request_, replace(request_, question="what is the small red word ? it is blue")]
    together = extract_attention(adapter, requests, max_new_tokens=20)
    for request, row in zip(requests, together, strict=True):
        (alone,) = extract_attention(adapter, [request], max_new_tokens=20)
        if row.sink is not None and alone.sink is not None:
            torch.testing.assert_close(row.sink, alone.sink, rtol=1e-5, atol=1e-5)


def test_sink_dimensions_are_found(profile: ModelProfile, request_: Request) -> None:
    adapter = load_adapter(profile, device="cpu")
    encode = adapter.encode_images

    class Planted(type(adapter)):  # type: ignore[misc]
        def encode_images(self, images, **options):
            features = encode(images, **options)
            tokens = features[0].tokens.clone()
            tokens[PLANTED, DIMENSION] = -50 * tokens.abs().max()
            return [replace(features[0], tokens=tokens)]

    adapter.__class__ = Planted
    assert DIMENSION in find_sink_dimensions(adapter, [request_], 2)
    assert find_sink_dimensions(adapter, [request_], 0) == ()
    width = adapter.model.config.get_text_config().hidden_size
    every = find_sink_dimensions(adapter, [request_], width + 1)  # was a traceback
    assert every == tuple(range(width))


def test_visattnsink_rule_is_a_profile_of_data_only(tmp_path: Path) -> None:
    plain = load_profile("llava-1.5-7b").model_dump(mode="json")
    for selection in plain["heads"].values():
        selection["sink"] = {"rule": "dimensions", "layer": 2, "dimensions": [2533, 1415]}
    plain["labels"]["sink_threshold"] = 20.0
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    profile = load_profile(str(path))
    selection = profile.heads[QuestionKind.TEXTUAL]
    assert selection.hidden_signals == (SinkDimensions(layer=2, dimensions=(2533, 1415)),)
    assert selection.captured == {14: (13, 24, 26)}


def test_captured_heads_are_those_of_every_term() -> None:
    terms = tuple(
        SinkTerm(signal=signal, threshold=1.0)
        for signal in (SinkHeads(heads={2: (1,), 5: (0,)}), SinkLayerMean(layer=4), NORM)
    )
    selection = HeadSelection(grounding=GROUNDING, sink=SinkCombination(rule="all", terms=terms))
    assert selection.captured == {2: (0, 1, 3), 4: None, 5: (0,)}
    assert selection.hidden_signals == (NORM,)


def test_dimensions_outside_the_model_are_refused(profile: ModelProfile) -> None:
    rule = SinkDimensions(layer=0, dimensions=(2533, 1415))
    with pytest.raises(ModelError, match="the model has 48 dimensions"):
        load_adapter(with_rule(profile, rule), device="cpu")


def test_layers_outside_the_model_are_refused(profile: ModelProfile) -> None:
    with pytest.raises(ValidationError, match="sinks look at layer 6, the model has 6"):
        with_rule(profile, SinkHiddenNorm(layer=6))


def test_rules_in_different_units_need_their_own_thresholds(profile: ModelProfile) -> None:
    heads = {
        QuestionKind.NATURAL: HeadSelection(grounding=GROUNDING, sink=NORM),
        QuestionKind.TEXTUAL: HeadSelection(grounding=GROUNDING, sink=SinkLayerMean(layer=0)),
    }
    mixed = profile.model_copy(update={"heads": heads})
    with pytest.raises(ValidationError, match=r"rule: any, terms"):
        ModelProfile.model_validate(mixed.model_dump())
    rule = SinkCombination(rule="any", terms=(SinkTerm(signal=NORM, threshold=2.0),))
    with pytest.raises(ValidationError, match=r"set labels.sink_threshold to 1.0"):
        with_rule(profile, rule, 1e-3)

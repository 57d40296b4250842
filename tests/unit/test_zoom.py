"""Prefix reuse against plain recomputation, token for token and logit for logit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from sdrpn_core.attention.masks import ColumnMasks, Masks
from sdrpn_core.attention.patterns import CAUSAL
from sdrpn_core.decoding import cache_rows
from sdrpn_core.decoding.cache_rows import CachePart
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.decoding.growing_step import GrowingStep
from sdrpn_core.generation.greedy import answer_plain, greedy_decode, prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.prompts import ImageFeatures
from sdrpn_core.row_groups import PASS_COST_COLUMNS
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tests.image_files import noise
from tests.tiny_models import tiny_llava

QUESTIONS = ["what is it ?", "what is the small red word ? a a a a blue", "it", "red blue ?"]
SIZES = [(60, 40), (30, 50), (45, 45), (80, 20)]
NUM_CROPS = [1, 2, 0, 1]
MAX_NEW_TOKENS = 8


@pytest.fixture(scope="module", params=[1, 4], ids=lambda heads: f"kv_heads={heads}")
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelAdapter:
    profile = tiny_llava(
        tmp_path_factory.mktemp("tiny_llava"), num_key_value_heads=request.param, seed=3
    )
    return load_adapter(profile, device="cpu")


@pytest.fixture(scope="module")
def rpn(adapter: ModelAdapter) -> RegionProposalNetwork:
    return RegionProposalNetwork.from_adapter(adapter, adapter.profile.rpn).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return noise(SIZES)


@pytest.fixture(scope="module")
def features(adapter: ModelAdapter, images: list[Image.Image]) -> list[ImageFeatures]:
    return adapter.encode_images(images)


@pytest.fixture(scope="module")
def crops(adapter: ModelAdapter, images: list[Image.Image]) -> list[list[ImageFeatures]]:
    return [
        adapter.encode_images([BoxXYXY(3.0 + i, 2.0, 19.0, 15.5).crop(image) for i in range(count)])
        if count
        else []
        for image, count in zip(images, NUM_CROPS, strict=True)
    ]


def test_second_stage_logits_equal_recomputation(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
) -> None:
    first = first_stage(adapter, rpn, features, QUESTIONS)
    reused = second_stage_prefill(adapter, first, crops)
    for index, (question, image, row) in enumerate(zip(QUESTIONS, features, crops, strict=True)):
        with torch.inference_mode():
            plain = prefill(adapter, pad_left([adapter.embed_prompt(question, [image, *row])]))
        torch.testing.assert_close(reused.logits[index], plain.logits[0], atol=2e-5, rtol=1e-5)
        assert int(reused.next_position[index]) == int(plain.next_position[0])


def test_second_stage_tokens_equal_recomputation(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
) -> None:
    first = first_stage(adapter, rpn, features, QUESTIONS)
    reused = greedy_decode(adapter, second_stage_prefill(adapter, first, crops), MAX_NEW_TOKENS)
    for index, (question, image, row) in enumerate(zip(QUESTIONS, features, crops, strict=True)):
        (plain,) = answer_plain(adapter, [question], [[image, *row]], max_new_tokens=MAX_NEW_TOKENS)
        assert reused[index].tokens == plain.tokens


def test_a_penalty_is_for_what_the_prompt_with_the_crops_holds(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Text around two images may be one token, as line breaks in Gemma 3's prompts; tokens of the
    prompt without crops were taken."""
    plain_tokens, image = adapter._tokens, adapter.image_token_id
    (word,) = adapter.text_tokens("<unk>")

    def tokens(prompt: str) -> list[int]:
        ids = plain_tokens(prompt)
        pairs = zip(ids, [*ids[1:], -1], strict=True)
        return [
            part for one, two in pairs for part in ([one, word] if one == two == image else [one])
        ]

    monkeypatch.setattr(adapter, "_tokens", tokens)
    monkeypatch.setattr(adapter.model.generation_config, "repetition_penalty", 0.01)
    first = first_stage(adapter, rpn, features, QUESTIONS)
    assert first.held is not None
    before = first.held.clone()
    start = second_stage_prefill(adapter, first, crops)
    assert start.held is not None
    assert start.held[:, word].tolist() == [bool(row) for row in crops]
    assert torch.equal(first.held, before), "another second stage may follow"
    answers = greedy_decode(adapter, start, MAX_NEW_TOKENS)
    images = [[image, *row] for image, row in zip(features, crops, strict=True)]
    plain = answer_plain(adapter, QUESTIONS, images, max_new_tokens=MAX_NEW_TOKENS)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in plain]


def test_first_stage_batch_equals_one_by_one(
    adapter: ModelAdapter, rpn: RegionProposalNetwork, features: list[ImageFeatures]
) -> None:
    together = first_stage(adapter, rpn, features, QUESTIONS)
    for index, (question, image) in enumerate(zip(QUESTIONS, features, strict=True)):
        alone = first_stage(adapter, rpn, [image], [question])
        torch.testing.assert_close(
            together.roi_logits[index], alone.roi_logits[0], atol=2e-5, rtol=1e-5
        )


def test_withdrawn_images_are_not_run_through_the_upper_layers(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
) -> None:
    first = first_stage(adapter, rpn, features, QUESTIONS)
    branch, num_cells = adapter.profile.rpn.branch_layer, features[0].grid.num_cells
    zoomed = [row or crops[0] for row in crops]
    layers = second_stage_prefill(adapter, first, zoomed, withdraw_image=True).cache.layers
    below, above = layers[branch - 1].keys.shape[2], layers[branch].keys.shape[2]
    assert below - above == num_cells


@pytest.mark.parametrize("withdraw_image", [False, True])
def test_questions_about_one_image_share_its_prefix(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
    withdraw_image: bool,
) -> None:
    """Rows of one image in any order, with and without crops, against each row alone."""
    images = [0, 1, 0, 2, 0]
    questions = [*QUESTIONS, "the small word is red ?"]
    own_crops = [crops[0], crops[1], [], crops[3], crops[1]]
    first = first_stage(adapter, rpn, [features[index] for index in images], questions)
    assert len(first.prefix.hidden) == 3
    assert first.prefix_rows.tolist() == [0, 1, 0, 2, 0]
    logits = first.roi_logits
    start = second_stage_prefill(adapter, first, own_crops, withdraw_image=withdraw_image)
    together = greedy_decode(adapter, start, MAX_NEW_TOKENS)
    for row, (index, question) in enumerate(zip(images, questions, strict=True)):
        alone = first_stage(adapter, rpn, [features[index]], [question])
        torch.testing.assert_close(logits[row], alone.roi_logits[0], atol=2e-5, rtol=1e-5)
        start = second_stage_prefill(
            adapter, alone, [own_crops[row]], withdraw_image=withdraw_image
        )
        (answer,) = greedy_decode(adapter, start, MAX_NEW_TOKENS)
        assert together[row].tokens == answer.tokens
        if not withdraw_image:
            seen = [features[index], *own_crops[row]]
            (plain,) = answer_plain(adapter, [question], [seen], max_new_tokens=MAX_NEW_TOKENS)
            assert answer.tokens == plain.tokens


def test_whose_prefixes_are_equal_is_known_without_the_device(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the question stands before the image, each was compared on the device with every other
    about its image."""
    profile = adapter.profile.model_copy(update={"prompt": "{question} {images} a"})
    monkeypatch.setattr(torch, "equal", pytest.fail)
    asked = [("it is", 0), ("is it", 0), ("it is", 0), ("it is", 1), ("it", 0)]
    questions, images = zip(*asked, strict=True)
    first = first_stage(
        adapter.with_profile(profile), rpn, [features[index] for index in images], questions
    )
    assert first.prefix_rows.tolist() == [0, 1, 0, 2, 3]


@dataclass(frozen=True)
class _Pass:
    """Rows and columns that went through some layers together."""

    layers: range
    num_rows: int
    num_columns: int
    masks: Masks


@pytest.fixture
def passes(adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> list[_Pass]:
    """Every call of the decoder."""
    seen: list[_Pass] = []
    run = adapter.decoder.run

    def noting(inputs: DecoderInput, layers: range, **options: Any) -> Tensor:
        seen.append(_Pass(layers, *inputs.hidden.shape[:2], inputs.masks))
        return run(inputs, layers, **options)

    monkeypatch.setattr(adapter.decoder, "run", noting)
    return seen


def test_prompts_without_padding_go_below_the_branch_in_one_pass(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    passes: list[_Pass],
) -> None:
    first_stage(adapter, rpn, features[:3], ["red blue ?", "it is a", "a red word"])
    assert [item.num_rows for item in passes] == [3]
    passes.clear()
    first_stage(adapter, rpn, features[:2], ["red blue ?", "it"])
    assert [item.num_rows for item in passes] == [2, 2], "prefixes, then questions"


@pytest.mark.parametrize(("zoomed", "finished"), [([True] * 3, []), ([True, False, True], [1])])
def test_only_prefixes_that_are_seen_go_above_the_branch(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
    passes: list[_Pass],
    zoomed: list[bool],
    finished: list[int],
) -> None:
    """Shared prefixes were run through all layers for questions that had their crops instead."""
    first = first_stage(adapter, rpn, [features[0], features[1], features[0]], QUESTIONS[:3])
    passes.clear()
    rows = [crops[0] if has_crop else [] for has_crop in zoomed]
    second_stage_prefill(adapter, first, rows, withdraw_image=True)
    num_columns = first.prefix.hidden.shape[1]
    above = [item for item in passes if item.layers.start == adapter.profile.rpn.branch_layer]
    assert [item.num_rows for item in above if item.num_columns == num_columns] == finished


@pytest.mark.parametrize("questions", [["red blue ?"] * 2, ["red blue ?", "it"]])
def test_a_step_asks_nothing_of_columns_without_padding(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
    passes: list[_Pass],
    questions: list[str],
) -> None:
    """And turns its token once, however many spans of layers see different columns."""
    first = first_stage(adapter, rpn, features[:2], questions)
    start = second_stage_prefill(adapter, first, [crops[0]] * 2, withdraw_image=True)
    passes.clear()
    turned: list[Tensor] = []
    hook = adapter.decoder.rotary_emb.register_forward_hook(lambda *args: turned.append(args[1][0]))
    step = GrowingStep(adapter.decoder, start, 2)
    step.next_logits(torch.tensor([3, 4]))
    hook.remove()
    assert len(start.spans) == len(passes) == 2
    assert len(turned) == 1
    is_padded = questions[0] != questions[1]
    assert [item.masks.of(CAUSAL) is not None for item in passes] == [is_padded] * 2


def test_first_stage_logits_equal_the_training_forward(
    adapter: ModelAdapter, rpn: RegionProposalNetwork, features: list[ImageFeatures]
) -> None:
    """Inference runs the RPN in two parts, prefix and question; training runs it in one."""
    first = first_stage(adapter, rpn, features[:1], QUESTIONS[:1])
    prompt = adapter.embed_prompt(QUESTIONS[0], features[:1])
    positions = prompt.position_ids[..., None, :]
    with torch.inference_mode():
        masks = ColumnMasks(prompt.image_numbers[None])
        inputs = DecoderInput(prompt.embeds[None], masks, positions)
        hidden = adapter.decoder.run(inputs, range(adapter.profile.rpn.branch_layer))
        whole = rpn(
            hidden,
            masks=masks,
            position_ids=positions,
            query_columns=torch.tensor([prompt.embeds.shape[0] - 1]),
            image_columns=prompt.image_columns()[None],
        )
    torch.testing.assert_close(first.roi_logits[0].flatten(), whole[0], atol=2e-5, rtol=1e-5)


def test_prefix_hidden_states_equal_the_stock_forward(
    adapter: ModelAdapter, rpn: RegionProposalNetwork, features: list[ImageFeatures]
) -> None:
    first = first_stage(adapter, rpn, features[:1], QUESTIONS[:1])
    prompt = adapter.embed_prompt(QUESTIONS[0], features[:1])
    with torch.inference_mode():
        stock = adapter.decoder.text_model(
            inputs_embeds=prompt.embeds[None], output_hidden_states=True
        )
    at_branch = stock.hidden_states[adapter.profile.rpn.branch_layer]
    torch.testing.assert_close(
        first.prefix.hidden[0], at_branch[0, : prompt.prefix_length], atol=1e-5, rtol=1e-5
    )


def test_joined_parts_are_let_go_of_layer_by_layer(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: list[ImageFeatures],
    crops: list[list[ImageFeatures]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole batch was held twice over while its parts were joined."""
    most_alive = []

    def spy(values: Sequence[Tensor], parts: Sequence[CachePart]) -> Tensor:
        most_alive.append(max(len(part.cache.layers) for part in parts))
        return joined_columns(values, parts)

    joined_columns = cache_rows._joined_columns
    monkeypatch.setattr(cache_rows, "_joined_columns", spy)
    monkeypatch.setitem(PASS_COST_COLUMNS, "cpu", 0)
    first = first_stage(adapter, rpn, features, QUESTIONS)
    start = second_stage_prefill(adapter, first, crops)
    num_layers = adapter.profile.num_layers
    assert most_alive == [left for left in range(num_layers - 1, -1, -1) for _ in range(2)]
    assert len(start.cache.layers) == num_layers
    again = second_stage_prefill(adapter, first, crops)
    torch.testing.assert_close(again.logits, start.logits, msg="the first stage was used up")


def test_columns_that_a_shorter_part_lacks_are_zero() -> None:
    """Memory that nobody wrote to may hold NaN, which no mask takes out of a sum."""
    rows = (torch.tensor([1]), torch.tensor([0, 2]))
    parts = [CachePart(DynamicCache(), (), own) for own in rows]
    short, long = torch.randn(1, 2, 3), torch.randn(2, 4, 3)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        joined = cache_rows._scatter([short, long], parts)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(joined[rows[0]], torch.nn.functional.pad(short, (0, 0, 2, 0)))
    assert torch.equal(joined[rows[1]], long)

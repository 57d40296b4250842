"""One harness for all methods: batches do not matter, rows keep their contract, crops are right."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from data_contracts import registry
from data_contracts.configs import EvaluationConfig
from data_contracts.enums import Method, QuestionKind
from data_contracts.errors import SdrpnError
from data_contracts.label_settings import RegionSettings
from data_contracts.sources import SceneSource
from sdrpn_core.benchmarks import (
    Document,
    UnknownBenchmark,
    UnusableDocument,
    known_benchmarks,
    score,
)
from sdrpn_core.decoding.fixed_step import FixedStep, StepShape
from sdrpn_core.evaluation.harness import Evaluator
from sdrpn_core.evaluation.methods import Answerer, oracle_box, random_box
from sdrpn_core.evaluation.prediction_rows import regions_of
from sdrpn_core.evaluation.speed import Timings
from sdrpn_core.evaluation.vicrop import general_question, most_grounding_layer
from sdrpn_core.extraction.prompt_attention import prompt_attention
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import pad_left
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.images import PreparedImages
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.regions import Region
from sdrpn_core.rpn.network import RegionProposalNetwork
from tests.tiny_models import tiny_llava
from tests.zoom_checks import encode_crops

SIZES = [(60, 40), (40, 60), (50, 50), (90, 30), (64, 64)]
QUESTIONS = [
    "what is the red word ?\nis it small",
    "what is it ?",
    "is the small blue word red ?",
    "what ?",
    "the the the word ?",
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ModelAdapter:
    profile = tiny_llava(Path(tmp_path_factory.mktemp("tiny")))
    return load_adapter(profile, device="cpu")


@pytest.fixture(scope="module")
def pipeline(adapter: ModelAdapter) -> ZoomPipeline:
    torch.manual_seed(0)
    rpn = RegionProposalNetwork.from_adapter(adapter, adapter.profile.rpn)
    regions = RegionSettings(
        threshold_is_peak_ratio=True, max_box_area_ratio=None, mask_threshold_ratio=1.0
    )
    return ZoomPipeline(adapter, rpn, threshold=0.7, regions=regions)


@pytest.fixture(scope="module")
def images() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    return {
        f"image-{index}": Image.fromarray(
            rng.integers(0, 255, size=(height, width, 3), dtype=np.uint8)
        )
        for index, (width, height) in enumerate(SIZES)
    }


def documents(*, without_box: int | None = None) -> list[Document]:
    return [
        Document(
            benchmark="scenes",
            question_id=f"q{index}",
            image_uri=f"image-{index}",
            question=question,
            answers=("red word",),
            kind=QuestionKind.TEXTUAL if index % 2 else QuestionKind.NATURAL,
            category="sign" if index < 2 else "document",
            true_box=None if index == without_box else BoxXYXY(5.0, 4.0, 25.0, 14.0),
        )
        for index, question in enumerate(QUESTIONS)
    ]


def loader(images: dict[str, Image.Image]) -> Callable[[Sequence[str]], list[Image.Image]]:
    """``load_images`` over images in memory."""
    return lambda uris: [images[uri] for uri in uris]


def settings(**changes: object) -> EvaluationConfig:
    source = SceneSource(name="held-out", num_images=5, seed=1)
    plain = {"source": source, "max_new_tokens": 8, "methods": tuple(Method), **changes}
    return EvaluationConfig.model_validate(plain)


def test_batches_give_what_documents_give_one_by_one(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    evaluator = Evaluator(adapter, settings(), pipeline)
    batched = evaluator.evaluate(documents(), loader(images), batch_size=3)
    single = evaluator.evaluate(documents(), loader(images), batch_size=1)
    assert len(batched) == len(documents()) * len(Method)
    for one, other in zip(batched, single, strict=True):
        key = (one["method"], one["question_id"])
        assert key == (other["method"], other["question_id"])
        assert one["prediction"] == other["prediction"], key
        assert one["boxes"] == other["boxes"], key
        for column in ("roi_map", "sink_map"):
            assert (one[column] is None) == (other[column] is None), key
            if one[column] is not None:
                np.testing.assert_allclose(one[column], other[column], rtol=2e-4, atol=1e-6)
    answers = {row["prediction"] for row in batched if row["method"] == "sdrpn"}
    assert len(answers) > 1, "a test model that always says the same tests nothing"


def test_rows_are_valid_predictions_and_repeat_exactly(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    timings = Timings()
    rows = Evaluator(adapter, settings(), pipeline).evaluate(
        documents(), loader(images), batch_size=2, on_batch=timings.add
    )
    again = Evaluator(adapter, settings(), pipeline).evaluate(
        documents(), loader(images), batch_size=2
    )
    assert rows == again
    frame = registry.validate(
        pl.DataFrame(rows, schema=registry.empty_frame("prediction.v4").schema),
        "prediction.v4",
    )
    assert set(frame["method"]) == {method.value for method in Method}
    speeds = timings.summarize().methods
    assert set(speeds) == set(Method)
    assert all(speed.seconds_per_document > 0 for speed in speeds.values())
    with_map = frame.filter(pl.col("roi_map").is_not_null())["method"].unique().to_list()
    always = {
        "sdrpn",
        "sdrpn_withdrawn",
        *(method.value for method in Method if method.value.startswith("vicrop")),
    }
    assert always <= set(with_map) <= {*always, "raw_attention"}


def test_every_cropping_method_crops_somewhere(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    rows = Evaluator(adapter, settings(), pipeline).evaluate(
        documents(), loader(images), batch_size=5
    )
    cropping = {row["method"] for row in rows if row["boxes"]}
    assert cropping == {method.value for method in Method} - {"base"}
    for row in rows:
        width, height = images[row["image_uri"]].size
        for x0, y0, x1, y1 in row["boxes"]:
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height


def test_sdrpn_answers_as_the_same_crops_do_without_reuse(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    """The oracle given SD-RPN's own box must answer what SD-RPN answers: one mechanism."""
    unmasked = copy(pipeline)
    unmasked.regions = pipeline.regions.model_copy(update={"mask_threshold_ratio": None})
    answerer = Answerer(adapter, settings(crop_padding_ratio=0.0), unmasked)
    pictures = [images[document.image_uri] for document in documents()]
    zoomed = answerer.answer(Method.SDRPN, pictures, documents())
    cropped = [index for index, answer in enumerate(zoomed) if answer.boxes]
    assert len(cropped) >= 3
    for index in cropped:
        given = Document(
            **{**vars(documents()[index]), "true_box": BoxXYXY(*zoomed[index].boxes[0])}
        )
        (oracle,) = answerer.answer(Method.ORACLE, [pictures[index]], [given])
        assert oracle.text == zoomed[index].text


def test_regions_of_maps_are_masked_and_boxes_from_elsewhere_are_not(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    """Or a comparison of RPN and raw attention would be one of masks and none."""
    answerer = Answerer(adapter, settings(), pipeline)
    pictures = [images[document.image_uri] for document in documents()]
    (whole,) = encode_crops(adapter, pictures[:1])
    for method in Method:
        answers = answerer.answer(method, pictures, documents())
        shares = [answer.num_crop_tokens / whole.num_tokens for answer in answers if answer.boxes]
        if method in (Method.SDRPN, Method.SDRPN_WITHDRAWN, Method.RAW_ATTENTION):
            assert min(shares) < 1, method
        else:
            assert set(shares) <= {1.0}, method
        assert all(a.num_crop_tokens == 0 for a in answers if not a.boxes)


def test_raw_attention_reads_whole_answers_where_a_benchmark_wants_short_ones(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    """V* allows 16 tokens, in which no list of boxes ends: raw attention was the base method."""
    pictures = [images[document.image_uri] for document in documents()]
    short, whole = (
        Answerer(adapter, settings(max_new_tokens=number), pipeline).answer(
            Method.RAW_ATTENTION, pictures, documents()
        )
        for number in (1, 32)
    )
    assert [answer.boxes for answer in short] == [answer.boxes for answer in whole]
    assert any(answer.boxes for answer in short)


def test_the_two_ways_of_zooming_differ_in_what_the_upper_layers_see(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    answerer = Answerer(adapter, settings(), pipeline)
    pictures = [images[document.image_uri] for document in documents()]
    whole, withdrawn = (
        answerer.answer(method, pictures, documents())
        for method in (Method.SDRPN, Method.SDRPN_WITHDRAWN)
    )
    assert [answer.boxes for answer in whole] == [answer.boxes for answer in withdrawn]
    assert [answer.text for answer in whole] != [answer.text for answer in withdrawn]
    alone = ZoomPipeline(
        adapter,
        pipeline.rpn,
        threshold=pipeline.threshold,
        regions=pipeline.regions.with_changes(withdraw_image=True),
    )
    questions = [document.question for document in documents()]
    said = alone.answer(pictures, questions, max_new_tokens=8)
    assert [answer.text for answer in withdrawn] == [answer.text for answer in said]
    assert not pipeline.regions.withdraw_image, "the caller's pipeline was changed"


def test_what_the_rpn_was_made_for_decides_how_large_crops_are_and_not_which_zooms_are_asked(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    """Or a run that answers with the image withdrawn would have two rows of the same thing."""
    pictures = [images[document.image_uri] for document in documents()]
    cheap = copy(pipeline)
    cheap.regions = pipeline.regions.with_changes(crop_tokens=4, withdraw_image=True)
    own, same, larger = (
        Answerer(adapter, settings(**changes), zoom)
        for zoom, changes in (
            (cheap, {}),
            (pipeline, {"crop_tokens": 4}),
            (cheap, {"crop_tokens": 1000}),
        )
    )
    whole = Answerer(adapter, settings(), pipeline)
    for method in (Method.SDRPN, Method.SDRPN_WITHDRAWN, Method.ORACLE):
        found = [
            [(answer.text, answer.boxes, answer.num_crop_tokens) for answer in answers]
            for answers in (
                answerer.answer(method, pictures, documents())
                for answerer in (own, same, larger, whole)
            )
        ]
        assert found[0] == found[1]
        assert found[2] == found[3]
        assert found[0] != found[2]


def test_oracle_leaves_documents_without_true_box_to_the_others(
    adapter: ModelAdapter, pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    timings = Timings()
    rows = Evaluator(adapter, settings(), pipeline).evaluate(
        documents(without_box=1), loader(images), batch_size=2, on_batch=timings.add
    )
    series = timings.to_series()
    assert series["documents.oracle"] == (1, 2, 1)
    assert series["documents.base"] == (2, 2, 1)
    answered = {method: 0 for method in Method}
    for row in rows:
        answered[Method(row["method"])] += 1
    assert answered.pop(Method.ORACLE) == 4
    assert set(answered.values()) == {5}


def test_methods_take_turns_so_that_none_is_always_first(
    adapter: ModelAdapter, images: dict[str, Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Method] = []
    methods = (Method.BASE, Method.ORACLE)
    evaluator = Evaluator(adapter, settings(methods=methods))
    answer = evaluator._answerer.answer

    def spy(method: Method, *arguments: object) -> object:
        order.append(method)
        return answer(method, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluator._answerer, "answer", spy)
    rows = evaluator.evaluate(documents()[:3], loader(images), batch_size=1)
    # Each method's first answer of all is its warm-up, which gives no row.
    base, oracle = methods
    assert order == [base, base, oracle, oracle, oracle, base, base, oracle]
    assert [row["method"] for row in rows] == ["base", "oracle"] * 3


def test_no_documents_give_no_rows(adapter: ModelAdapter) -> None:
    evaluator = Evaluator(adapter, settings())
    assert evaluator.evaluate([], loader({}), batch_size=4) == []


def test_sdrpn_without_network_says_what_to_run(
    adapter: ModelAdapter, images: dict[str, Image.Image]
) -> None:
    evaluator = Evaluator(adapter, settings(methods=("sdrpn",)))
    with pytest.raises(ModelError, match="train-rpn"):
        evaluator.evaluate(documents(), loader(images), batch_size=2)


def test_prompt_attention_is_the_last_rows_mean_over_heads(
    adapter: ModelAdapter, images: dict[str, Image.Image]
) -> None:
    """Against the stock model's own eager attention, prompts of unequal length in one batch."""
    pictures = [images["image-0"], images["image-1"]]
    features = adapter.encode_images(pictures)
    found = prompt_attention(adapter, QUESTIONS[:2], features, [2, 4])
    for index, layer in enumerate((2, 4)):
        prompt = adapter.embed_prompt(QUESTIONS[index], [features[index]])
        config = adapter.model.config.text_config
        before = config._attn_implementation
        adapter.model.set_attn_implementation({"text_config": "eager"})
        with torch.inference_mode():
            output = adapter.decoder.text_model(
                inputs_embeds=prompt.embeds[None], output_attentions=True, use_cache=False
            )
        adapter.model.set_attn_implementation({"text_config": before})
        wanted = output.attentions[layer][0, :, -1, prompt.image_columns()].mean(dim=0)
        np.testing.assert_allclose(found[index].ravel(), wanted.numpy(), rtol=1e-4, atol=1e-7)


def test_vicrop_reads_the_layer_with_most_grounding_heads(adapter: ModelAdapter) -> None:
    assert most_grounding_layer(adapter.profile, QuestionKind.NATURAL) == 2
    assert most_grounding_layer(adapter.profile, QuestionKind.TEXTUAL) == 3
    one_kind = adapter.profile.model_copy(update={"heads": {}})
    with pytest.raises(SdrpnError, match="calibrate"):
        most_grounding_layer(one_kind, QuestionKind.NATURAL)


def test_general_prompt_keeps_the_answer_style() -> None:
    suffix = "\nAnswer the question using a single word or phrase."
    assert general_question("What is it?" + suffix).endswith("of the image." + suffix)
    assert "\n" not in general_question("What is it?")


def test_oracle_box_is_padded_and_stays_in_the_image() -> None:
    document = documents()[0]
    assert oracle_box(document, (60, 40), 0.1) == BoxXYXY(3.0, 3.0, 27.0, 15.0)
    assert oracle_box(document, (26, 14), 0.5) == BoxXYXY(0.0, 0.0, 26.0, 14.0)
    with pytest.raises(ValueError, match="outside"):
        oracle_box(document, (4, 3), 0.0)
    with pytest.raises(ValueError, match="no true box"):
        oracle_box(documents(without_box=0)[0], (60, 40), 0.1)


def test_a_true_box_outside_its_image_counts_as_none_and_is_told(
    adapter: ModelAdapter, images: dict[str, Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    """All answers were made before the results failed, then the run stopped at the first such."""
    width, height = images["image-0"].size
    outside = BoxXYXY(width + 1.0, 4.0, width + 31.0, 14.0)
    beside = [replace(documents()[0], true_box=outside), *documents()[1:2]]
    none = [replace(documents()[0], true_box=None), *documents()[1:2]]
    evaluator = Evaluator(adapter, settings(methods=(Method.BASE, Method.ORACLE)))
    found = evaluator.evaluate(beside, loader(images), batch_size=2)
    assert found == evaluator.evaluate(none, loader(images), batch_size=2)
    assert [row["method"] for row in found] == ["base", "base", "oracle"]
    told = [record.getMessage() for record in caplog.records if "true box" in record.message]
    assert len(told) == 1
    assert told[0].startswith("true boxes left out: 1; the first: image-0: the true box (")
    with pytest.raises(UnusableDocument, match=r"the true box .* is outside the image, which has"):
        oracle_box(beside[0], (width, height), 0.1)


@pytest.mark.parametrize("method", [Method.BASE, Method.RAW_ATTENTION, Method.VICROP])
def test_other_methods_make_idle_buffers_give_way_too(
    adapter: ModelAdapter,
    images: dict[str, Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    method: Method,
) -> None:
    """Those that the last method's decoding had left were in the way of the next one's tower."""
    pool, encode = adapter.step_pool, adapter.encode_prepared
    start = prefill(adapter, pad_left([a_prompt(adapter, images["image-0"])]))
    step = FixedStep(adapter.decoder, start, StepShape.of(start, 3))
    pool._idle[step.shape] = step

    def hungry(prepared: PreparedImages) -> list[ImageFeatures]:
        if pool._idle:
            raise torch.OutOfMemoryError("no room")
        return encode(prepared)

    monkeypatch.setattr(adapter, "encode_prepared", hungry)
    answerer = Answerer(adapter, settings(methods=(method,)))
    (answer,) = answerer.answer(method, [images["image-0"]], documents()[:1])
    assert answer.text
    assert not pool._idle


@torch.inference_mode()
def a_prompt(adapter: ModelAdapter, image: Image.Image) -> Prompt:
    return adapter.embed_prompt("what is it ?", adapter.encode_images([image]))


def test_random_box_has_the_oracles_size_and_depends_on_the_question_only() -> None:
    document = documents()[0]
    box = random_box(document, (600, 400), 0.1)
    assert (box.x1 - box.x0, box.y1 - box.y0) == pytest.approx((24.0, 12.0))
    assert random_box(document, (600, 400), 0.1) == box
    assert random_box(documents()[1], (600, 400), 0.1) != box
    boxless = random_box(documents(without_box=0)[0], (600, 300), 0.1)
    assert (boxless.x1 - boxless.x0, boxless.y1 - boxless.y0) == pytest.approx((200.0, 100.0))


def test_empty_reference_is_never_matched() -> None:
    assert score("scenes", "", {"answers": [""]}) == 0.0
    assert score("scenes", "x", {"answers": []}) == 0.0


def test_unknown_benchmark_names_the_known_ones() -> None:
    with pytest.raises(UnknownBenchmark, match="scenes"):
        score("no-such-benchmark", "x", {"answers": ["x"]})
    assert "scenes" in known_benchmarks()


def test_what_a_prediction_showed_is_found_in_its_row(
    pipeline: ZoomPipeline, images: dict[str, Image.Image]
) -> None:
    """Rows hold the crops; what was masked of them follows from the map, for the report."""
    asked = documents()
    answers = pipeline.answer(
        [images[document.image_uri] for document in asked],
        [document.question for document in asked],
        max_new_tokens=3,
    )
    own = settings(methods=(Method.SDRPN,))
    rows = Evaluator(pipeline.adapter, own, pipeline).evaluate(asked, loader(images), batch_size=2)
    assert any(region.shown is not None for answer in answers for region in answer.regions)
    num_of_others = 0
    for row, answer in zip(rows, answers, strict=True):
        assert regions_of(row, pipeline.threshold, pipeline.regions) == answer.regions
        stored = pl.DataFrame([row], schema=registry.empty_frame("prediction.v4").schema)
        (read,) = stored.iter_rows(named=True)
        assert regions_of(read, pipeline.threshold, pipeline.regions) == answer.regions
        assert regions_of(row | {"boxes": []}, pipeline.threshold, pipeline.regions) == ()
        whole = tuple(map(Region, answer.boxes))
        no_map = row | {"roi_map": None}
        assert regions_of(no_map, pipeline.threshold, pipeline.regions) == whole
        other = regions_of(row, 0.999, pipeline.regions)
        assert [region.box for region in other] == list(answer.boxes)
        num_of_others += other == whole
    assert num_of_others, "crops that such a threshold would not have made"

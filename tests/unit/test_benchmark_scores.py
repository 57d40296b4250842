"""Scoring rules: equal to lmms-eval where published, and what strict does otherwise."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdrpn_core.benchmarks import (
    UnknownBenchmark,
    UnknownMode,
    UnusableDocument,
    aggregate,
    known_benchmarks,
    score,
)
from sdrpn_core.benchmarks.anls import levenshtein
from tests.oracles.benchmark_cases import BENCHMARKS, cases
from tests.oracles.benchmark_parity import PAGE, page_with, parity, tables
from tests.oracles.benchmark_quirks import QUIRKS, Quirk
from tests.oracles.figure_parity import figure_parity, is_decided
from tests.oracles.lmms_eval_scores import JudgeAsked, lmms_eval_figures, lmms_eval_score

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
ANSWERS = st.lists(TEXT, min_size=1, max_size=10)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_published_scores_equal_lmms_evals(benchmark: str):
    found = parity(benchmark)
    assert found.unequal == []
    assert found.num_equal + found.num_judged == found.num_cases >= 1000
    # Both outcomes occur often, so that equality means something.
    assert 0.2 < found.num_positive / found.num_cases < 0.85
    assert found.num_strict_differs > 0


@settings(max_examples=300, deadline=None)
@given(prediction=TEXT, answers=ANSWERS)
def test_text_rules_equal_on_any_unicode(prediction: str, answers: list[str]):
    documents = {
        "textvqa": {"question_id": 1, "answers": answers},
        "docvqa": {"answers": answers},
        "chartqa": {"type": "human_test", "answer": answers[0]},
        "ocrbench": {"dataset": "IIIT5K", "question_type": "Doc-oriented VQA", "answer": answers},
    }
    for benchmark, document in documents.items():
        for text in (prediction, answers[0], f"{answers[0]}{prediction}"):
            assert score(benchmark, text, document) == lmms_eval_score(benchmark, text, document)


@settings(max_examples=300, deadline=None)
@given(prediction=TEXT, options=st.lists(TEXT, min_size=4, max_size=4))
def test_choice_rules_equal_on_any_unicode(prediction: str, options: list[str]):
    letters = dict(zip("ABCD", options, strict=True))
    listed = " ".join(f"({letter}) {option}" for letter, option in letters.items())
    vstar = {"question_id": 1, "text": listed, "label": "A", "category": "direct_attributes"}
    hr = {"index": 1, "question": "?", **letters, "answer": "A", "category": "single"}
    hr["cycle_category"] = "0"
    for text in (prediction, options[0], f"A {prediction}"):
        assert score("vstar_bench", text, vstar) == lmms_eval_score("vstar_bench", text, vstar)
        try:
            theirs = lmms_eval_score("hrbench", text, hr)
        except JudgeAsked:
            theirs = 0.0
        assert score("hrbench", text, hr) == theirs


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_figures_equal_lmms_evals(benchmark: str, tmp_path):
    answers = [case for case in cases(benchmark, 600, seed=1) if is_decided(benchmark, *case)]
    ours = aggregate(benchmark, answers)
    theirs = lmms_eval_figures(benchmark, answers, tmp_path)
    assert theirs.keys() <= ours.keys()
    for name, value in theirs.items():
        assert math.isclose(ours[name], value, abs_tol=1e-12), name


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_figures_of_many_splits_equal_lmms_evals(benchmark: str):
    found = figure_parity(benchmark)
    assert found
    for name, figure in found.items():
        assert 0 < figure.num_splits == figure.num_equal, name


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: f"{quirk.benchmark}-{quirk.what}")
def test_oddities_are_published_and_not_strict(quirk: Quirk):
    published = score(quirk.benchmark, quirk.prediction, quirk.document)
    strict = score(quirk.benchmark, quirk.prediction, quirk.document, "strict")
    assert (published, strict) == pytest.approx((quirk.published, quirk.strict))
    assert published != pytest.approx(strict)


def test_the_last_option_of_a_vstar_question_ends_with_its_line():
    """The sentence that asks for a letter was taken for part of it, and the text never matched."""
    text = (
        "What is the glove made of?\n(A) rubber\n(B) cotton\n(C) kevlar\n(D) leather\n"
        "Answer with the option's letter from the given choices directly."
    )
    document = {"question_id": 1, "text": text, "label": "D", "category": "direct_attributes"}
    for prediction in ("leather", "Leather.", "(D) leather", "D"):
        assert score("vstar_bench", prediction, document, "strict") == 1
    assert score("vstar_bench", "kevlar", document, "strict") == 0


NAMING = (
    "{} is correct",
    "Option {} is correct.",
    "{} is the answer",
    "The correct option is {} as shown",
    "The answer is {} because of the colour.",
    "option {} shows the car",
    "{} seems right",
    "{} in the image",
    "I choose {}",
    "{}, the red one",
    "It isn't easy, but {} fits best",
)


@pytest.mark.parametrize("label", "ABCD")
@pytest.mark.parametrize("sentence", NAMING)
def test_every_letter_is_named_by_the_same_sentences(sentence: str, label: str):
    """Any A before a small letter was taken for an article: "A is correct" named no option."""
    row = dict(zip("ABCD", ("car", "scarf", "dark red", "red"), strict=True)) | {"answer": label}
    vstar = {"label": label, "text": "Which? (A) car (B) scarf (C) dark red (D) red"}
    assert score("hrbench", sentence.format(label), row, "strict") == 1
    assert score("vstar_bench", sentence.format(label), vstar, "strict") == 1


@pytest.mark.parametrize("prediction", ["A red car", "A to-do list", "It is this. A scarf"])
def test_an_article_names_no_option(prediction: str):
    row = dict(zip("ABCD", ("plane", "bike", "bus", "tram"), strict=True)) | {"answer": "A"}
    assert score("hrbench", prediction, row, "strict") == 0


@pytest.mark.parametrize("prediction", ["2,100", "3.100", "100.5", "100,000", "1003"])
def test_no_part_of_a_longer_number_is_the_reference(prediction: str):
    """A reference of 100 was found behind the separator of 2,100 and of 3.100."""
    document = {"dataset": "x", "answer": ["100"]}
    assert score("ocrbench", f"It costs {prediction} in all", document, "strict") == 0
    for whole in ("100", "It costs 100.", "100, or so", "$100", "room no.100"):
        assert score("ocrbench", whole, document, "strict") == 1


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("1,5", "15", 0),
        ("15", "1,5", 0),
        ("1,5", "1,5", 1),
        ("0,500", "500", 0),
        ("12,00", "1200", 0),
        ("1,500", "1500", 1),
        ("1,234,567.8", "1234567", 1),
        ("-1,500.", "-1500", 1),
        ("1,500%", "15", 1),
    ],
)
def test_thousands_separators_are_three_digits_apart(prediction, target, expected):
    """Every comma was dropped, so that the decimal one of 1,5 made 15 of it."""
    assert score("chartqa", prediction, {"answer": target}, "strict") == expected


def test_page_shows_the_present_tables():
    assert PAGE.read_text(encoding="utf-8") == page_with(tables()), (
        "run `python -m tests.oracles.benchmark_parity`"
    )


@pytest.mark.parametrize("mode", ["published", "strict"])
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_scores_are_shares_and_documents_stay_as_they_are(benchmark: str, mode: str):
    for prediction, document in cases(benchmark, 200, seed=2):
        if document.get("answers", ()) is None:
            continue
        before = repr(document)
        assert 0.0 <= score(benchmark, prediction, document, mode) <= 1.0
        assert repr(document) == before


@pytest.mark.parametrize(
    ("benchmark", "prediction", "document"),
    [
        ("textvqa", "STOP.", {"answers": ["stop"] * 10}),
        ("docvqa", "U.S. Army", {"answers": ["army", "u.s. army"]}),
        ("chartqa", "14.7%", {"answer": "15%"}),
        ("ocrbench", "The sign says Stop.", {"dataset": "x", "answer": ["STOP"]}),
        ("ocrbench", "\u5317\u4eac\u5927\u5b66", {"dataset": "x", "answer": ["\u5317\u4eac"]}),
        ("ocrbench", "\\frac{A}{b}", {"dataset": "HME100k", "answer": ["\\frac { A } { b }"]}),
        ("vstar_bench", "(B)", {"label": "B", "text": "Which? (A) red (B) blue"}),
        ("pope", "no", {"answer": "No"}),
        ("hrbench", "B. blue", {"A": "red", "B": "blue", "answer": "B"}),
    ],
)
def test_a_plainly_right_answer_is_right_in_both_modes(benchmark, prediction, document):
    for mode in ("published", "strict"):
        assert score(benchmark, prediction, document, mode) == 1.0


@pytest.mark.parametrize("mode", ["published", "strict"])
def test_formulas_keep_their_case(mode: str):
    document = {"dataset": "HME100k", "answer": ["A"]}
    assert score("ocrbench", "a", document, mode) == 0.0


def test_strict_yes_no_figures_count_every_missed_yes():
    answers = [("yes", {"answer": "yes"}), ("maybe", {"answer": "yes"}), ("No.", {"answer": "no"})]
    published, strict = aggregate("pope", answers), aggregate("pope", answers, "strict")
    assert (published["pope_recall"], strict["pope_recall"]) == (1.0, 0.5)
    assert (published["pope_accuracy"], strict["pope_accuracy"]) == pytest.approx((1 / 3, 2 / 3))
    assert (published["pope_yes_ratio"], strict["pope_yes_ratio"]) == pytest.approx((2 / 3, 1 / 3))


def test_ocrbench_is_out_of_a_thousand_as_published():
    document = {"dataset": "x", "answer": ["stop"], "question_type": "Doc-oriented VQA"}
    answers = [("stop", document)]
    assert aggregate("ocrbench", answers)["ocrbench_accuracy"] == 0.001
    assert aggregate("ocrbench", answers, "strict")["ocrbench_accuracy"] == 1.0


@settings(max_examples=200, deadline=None)
@given(first=TEXT, second=TEXT)
def test_levenshtein_is_a_distance(first: str, second: str):
    distance = levenshtein(first, second)
    assert distance == levenshtein(second, first)
    assert (distance == 0) == (first == second)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))


@pytest.mark.parametrize(
    ("benchmark", "document", "named"),
    [
        ("docvqa", {"question": "?"}, "answers"),
        ("docvqa", {"answers": []}, "answers"),
        ("chartqa", {"answer": None}, "answer"),
        ("ocrbench", {"answer": ["x"]}, "dataset"),
        ("vstar_bench", {"label": 3}, "label"),
        ("pope", {"answer": "maybe"}, "maybe"),
        ("hrbench", {"answer": "A"}, "option"),
        ("hrbench", {"answer": ["A"], "A": "red", "B": "blue"}, "answer"),
    ],
)
def test_a_row_that_cannot_be_scored_says_what_it_lacks(benchmark, document, named):
    with pytest.raises(UnusableDocument, match=named):
        score(benchmark, "x", document)


def test_a_list_in_place_of_an_order_of_options_is_no_order():
    """It was a TypeError of dictionaries."""
    row = {"answer": "A", "A": "red", "B": "blue", "category": "single", "cycle_category": ["0"]}
    with pytest.raises(UnusableDocument, match=r"'cycle_category' holds \['0'\]; one text or n"):
        aggregate("hrbench", [("A", row)])


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(UnknownBenchmark, match="textvqa"):
        score("textvqa_val", "x", {})
    with pytest.raises(UnknownMode, match="strict"):
        score("textvqa", "x", {"answers": ["x"]}, "lenient")
    assert set(BENCHMARKS) | {"scenes"} == set(known_benchmarks())


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("2,100", "100", 0),
        ("3.100", "100", 0),
        ("01.02.2020", "2020", 1),
        ("12.05.2019", "2019", 1),
        ("1,2,3", "2", 1),
        ("No.5,6", "6", 1),
        ("it is 2,100.", "2,100", 1),
        ("1.5 kg", "5 kg", 0),
        ("99.9%", "9%", 0),
        ("2,100 dollars", "100 dollars", 0),
        ("total $2,100.50 now", "$2,100", 0),
        ("0.5 or 5", "5", 1),
    ],
)
def test_no_edge_of_what_is_found_cuts_a_number(answer: str, reference: str, right: int):
    """Parts of numbers were found; then parts of dates and lists were not."""
    row = {"answer": [reference], "dataset": "X", "question_type": "Regular Text Recognition"}
    assert score("ocrbench", answer, row, mode="strict") == right


@pytest.mark.parametrize(("answer", "right"), [("1,500 %", 1), ("1,500%", 1), ("1,5", 0)])
def test_separators_are_of_groups_of_three(answer: str, right: int):
    assert score("chartqa", answer, {"answer": "15"}, mode="strict") == right

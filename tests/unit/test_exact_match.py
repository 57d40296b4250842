"""The rule of one's own questions: whole answers, up to what does not change the meaning."""

import pytest

from sdrpn_core.benchmarks import score


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Red  circle, C 3.", 1.0),
        ("red circle c 3", 1.0),
        ("red circle c 8", 0.0),
        ("a red circle c 3", 0.0),
        ("C 3", 0.0),
        ("", 0.0),
        ("?", 0.0),
        ("other answer", 1.0),
    ],
)
def test_scene_score_is_whole_answer_exact_match(prediction: str, expected: float) -> None:
    document = {"answers": ["red circle C 3", "Other answer!"]}
    assert score("scenes", prediction, document) == expected


@pytest.mark.parametrize(
    ("answer", "others"),
    [
        ("5", ["-5", "\u22125", "5%", "5 %"]),
        ("-5", ["5", "-5%"]),
        ("5", [".5", "-.5", "0.5"]),
        ("C", ["C#", "-"]),
        ("3-5", ["3 -5"]),
        ("-", ["?", "--", "minus", ""]),
        ("?", ["-", "what?"]),
    ],
)
def test_signs_that_change_the_meaning_make_another_answer(answer: str, others: list[str]):
    """-5, 5, .5 and 5 % were the same answer, as C and C# were; "-" and "?" were never right."""
    for other in others:
        assert score("scenes", other, {"answers": [answer]}) == 0.0, other
        assert score("scenes", answer, {"answers": [other]}) == 0.0, other
    assert score("scenes", answer, {"answers": [answer]}) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("\u22125", "-5"),
        ("5%", "5 %."),
        ("coca cola", "Coca-Cola"),
        ("3 - 5", "3-5"),
        ("(-5)", "-5"),
        ("- 5", "5"),
        ("1", "#1"),
        (".5", "0.5"),
        ('".5"', ".5"),
        ("[.5]", ".5"),
        ("-.5 %", "(-0.5%)"),
        ("No.5", "no 5"),
        ('"5".5', "5 5"),
        ("a).5", "a) 5"),
        ("...5", "5"),
    ],
)
def test_signs_that_are_mere_punctuation_do_not(prediction: str, answer: str):
    assert score("scenes", prediction, {"answers": [answer]}) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("50%-60%", "50% - 60%", 1),
        ("50%-60%", "50%\N{EN DASH}60%", 1),
        ("10\N{DEGREE SIGN}-20\N{DEGREE SIGN}", "10\N{DEGREE SIGN} - 20\N{DEGREE SIGN}", 1),
        ('6"-8"', '6" - 8"', 1),
        ("(3)-5", "(3) - 5", 1),
        ("C #", "C#", 1),
        ("\N{EN DASH}5", "-5", 1),
        ("\N{EN DASH}5", "5", 0),
        ("it is -5", "it is 5", 0),
        ("(-5)", "-5", 1),
        ("'-5'", "5", 0),
        ('"-5"', "-5", 1),
        ("**-5**", "-5", 1),
        ("temp:-5", "temp: -5", 1),
        ("$\N{MINUS SIGN}5", "$-5", 1),
        ("$\N{MINUS SIGN}5", "$5", 0),
        ("\N{MINUS SIGN}$5", "-$5", 1),
        ("5 \N{MINUS SIGN} 3", "5 - 3", 1),
        ("x \N{MINUS SIGN} y", "x - y", 1),
        ("room # 5", "room #5", 1),
    ],
)
def test_a_minus_is_told_from_the_hyphen_of_a_range(answer: str, reference: str, right: int):
    """Hyphens of ranges were signs; then signs behind any mark but a bracket were lost."""
    assert score("scenes", answer, {"answers": [reference]}) == right

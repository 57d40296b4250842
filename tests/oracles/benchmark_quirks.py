"""Oddities of the published scoring rules, each with an answer that it scores otherwise."""

from typing import Any, NamedTuple


class Quirk(NamedTuple):
    benchmark: str
    what: str
    prediction: str
    document: dict[str, Any]
    published: float
    strict: float


def _agreed(answer: str) -> dict[str, Any]:
    return {"answers": [answer] * 10}


def _chart(answer: str) -> dict[str, Any]:
    return {"type": "human_test", "answer": answer}


def _ocr(answer: str) -> dict[str, Any]:
    return {"dataset": "IIIT5K", "question_type": "Doc-oriented VQA", "answer": [answer]}


_VSTAR = {
    "text": "What colour is the dog? (A) brown (B) white (C) black (D) grey",
    "label": "B",
    "category": "direct_attributes",
}
_HR = {
    "A": "car",
    "B": "scarf",
    "C": "dark red",
    "D": "red",
    "answer": "B",
    "category": "single",
    "cycle_category": "0",
}

QUIRKS = (
    Quirk(
        "textvqa",
        "a comma vanishes without leaving a space",
        "red,blue",
        _agreed("red blue"),
        0.0,
        1.0,
    ),
    Quirk(
        "textvqa",
        "a mark is removed, not made a space, if the same mark touches a space elsewhere",
        "coca-cola - light",
        _agreed("coca cola light"),
        0.0,
        1.0,
    ),
    Quirk(
        "textvqa",
        "'s is split off before contractions are looked up",
        "hes",
        _agreed("he's"),
        0.0,
        1.0,
    ),
    Quirk(
        "textvqa",
        "contractions with a capital letter are never found",
        "im",
        _agreed("I'm"),
        0.0,
        1.0,
    ),
    Quirk(
        "textvqa",
        "only 32 full stops are removed",
        "." * 33 + "stop",
        _agreed("stop"),
        0.0,
        1.0,
    ),
    Quirk("textvqa", "no answer equals an article", "", _agreed("the"), 1.0, 0.0),
    Quirk(
        "textvqa",
        "a lone annotator is compared with nobody",
        "stop",
        {"answers": ["stop"]},
        0.0,
        1.0,
    ),
    Quirk(
        "docvqa",
        "white space counts in the length but not in the distance",
        "ab\n\n\n\ncdxx",
        {"answers": ["ab cdyy"]},
        0.8,
        5 / 7,
    ),
    Quirk(
        "docvqa",
        "exactly half right scores (the paper: 0)",
        "abxx",
        {"answers": ["abcd"]},
        0.5,
        0.0,
    ),
    Quirk("docvqa", "no answer equals an empty reference", "", {"answers": [""]}, 1.0, 0.0),
    Quirk(
        "docvqa",
        "lengths are of the upper-case text, where the German sharp s is two letters",
        "stra\u00dfx",
        {"answers": ["stra\u00dfe"]},
        1 - 1 / 7,
        1 - 1 / 6,
    ),
    Quirk("chartqa", "a reference of 0 is compared as text", "0.0", _chart("0"), 0.0, 1.0),
    Quirk("chartqa", "thousands separators make a text", "1,000", _chart("1000"), 0.0, 1.0),
    Quirk("chartqa", "a full stop makes another text", "Yes.", _chart("Yes"), 0.0, 1.0),
    Quirk("chartqa", "an underscore is part of a number", "1_000", _chart("1000"), 1.0, 0.0),
    Quirk("chartqa", "a text that reads nan equals nothing", "NaN", _chart("nan"), 0.0, 1.0),
    Quirk("ocrbench", "found inside a longer number", "1003", _ocr("100"), 1.0, 0.0),
    Quirk("ocrbench", "found behind a thousands separator", "2,100", _ocr("100"), 1.0, 0.0),
    Quirk("ocrbench", "found inside a longer word", "scarf", _ocr("car"), 1.0, 0.0),
    Quirk("ocrbench", "an empty reference is found in everything", "stop", _ocr(""), 1.0, 0.0),
    Quirk(
        "ocrbench", "a line break and a space are two spaces", "no \nway", _ocr("no way"), 0.0, 1.0
    ),
    Quirk("vstar_bench", "any word that begins with A to D is a choice", "Both", _VSTAR, 1.0, 0.0),
    Quirk("vstar_bench", "any letter before a full stop is one", "Grab.", _VSTAR, 1.0, 0.0),
    Quirk("vstar_bench", "an option's text is not looked at", "it is white", _VSTAR, 0.0, 1.0),
    Quirk("pope", "punctuation makes an answer wrong", "Yes.", {"answer": "yes"}, 0.0, 1.0),
    Quirk("pope", "so does an explanation", "Yes, there is a dog", {"answer": "yes"}, 0.0, 1.0),
    Quirk("hrbench", "an option is found inside a longer word", "a scarf", _HR, 0.0, 1.0),
    Quirk("hrbench", "a small letter goes to the judge", "b", _HR, 0.0, 1.0),
    Quirk("hrbench", "the article A is a choice", "A scarf", {**_HR, "answer": "A"}, 1.0, 0.0),
)

"""Words of the reference world: what can be in a scene and how it is asked about.

Letters and digits are disjoint sets chosen to be easily told apart in small print; the letters
avoid one-letter words ("a") that occur in prompts, because the tokenizer lower-cases.
"""

from collections.abc import Mapping
from typing import Final

RGB = tuple[int, int, int]

COLOURS: Final[dict[str, RGB]] = {
    "red": (215, 35, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 225, 40),
    "green": (35, 150, 55),
    "cyan": (70, 215, 225),
    "blue": (35, 70, 215),
    "purple": (135, 45, 180),
    "pink": (250, 135, 195),
}
SHAPE_KINDS: Final = ("circle", "square", "triangle", "diamond", "cross", "star")
SIGN_KINDS: Final = ("sign", "tag")
LINE_KINDS: Final = ("line",)
KINDS: Final = SHAPE_KINDS + SIGN_KINDS + LINE_KINDS
LETTERS: Final = ("C", "E", "H", "L", "P", "T", "X", "Z")
DIGITS: Final = ("0", "1", "2", "3", "4", "5", "7", "9")

QUESTION_TEMPLATES: Final = (
    "What is the code on the {colour} {kind}?",
    "Which code does the {colour} {kind} show?",
    "Read the code on the {colour} {kind}.",
)
SHORT_ANSWER_SUFFIX: Final = "\nAnswer the question using a single word or phrase."

SPECIAL_TOKENS: Final = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PROMPT_WORDS: Final = (
    *("user", "assistant", ":", "?", ".", ","),
    *("what", "which", "is", "the", "code", "on", "does", "show", "read"),
    *("answer", "question", "using", "a", "single", "word", "or", "phrase"),
)


def all_tokens() -> list[str]:
    """Every token of the tokenizer, in id order."""
    names = (*COLOURS, *KINDS, *LETTERS, *DIGITS)
    return [*SPECIAL_TOKENS, *PROMPT_WORDS, *(name.lower() for name in names)]


TOKEN_IDS: Final[Mapping[str, int]] = {token: index for index, token in enumerate(all_tokens())}


def question_about(colour: str, kind: str, template_index: int) -> str:
    """The question about one object, without the short-answer suffix."""
    template = QUESTION_TEMPLATES[template_index % len(QUESTION_TEMPLATES)]
    return template.format(colour=colour, kind=kind)


def answer_about(colour: str, kind: str, code: str) -> str:
    """The answer echoes the referring expression, then gives the code: ``red circle C 3``."""
    return f"{colour} {kind} {code[0]} {code[1]}"


def normalise_answer(text: str) -> str:
    """Lower-case, single spaces, no surrounding punctuation: what exact match compares."""
    return " ".join(text.lower().replace(".", " ").replace(",", " ").split())

"""What is to be asked about many images: a file of questions, or one about all that match."""

import glob
import os
from pathlib import Path

from pydantic import ConfigDict, Field, field_validator

from data_contracts.base import Settings
from data_contracts.errors import one_line
from data_contracts.settings_files import ConfigError, parse_lines
from sdrpn_core.source_paths import is_unicode
from tasks.artifacts.store import ArtifactStore
from tasks.storage.addresses import absolute_uri, folder_and_name, kept_address

_QUESTIONS_SUFFIX = ".jsonl"


class Asked(Settings):
    """One line of a questions file; what else it says (an answer, a split) is not read."""

    model_config = ConfigDict(extra="ignore")

    image: str = Field(min_length=1)
    """Path or URI; relative paths start from the questions file."""
    question: str
    id: str | None = Field(default=None, coerce_numbers_to_str=True)

    @field_validator("question")
    @classmethod
    def _asks_something(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("is blank")
        if not is_unicode(question):
            raise ValueError(f"is {question!r}, which is not valid Unicode")
        return question


def check_question(question: str) -> None:
    """Refuse what a command line of another encoding makes of a question.

    Raises:
        ConfigError: saying what it is.
    """
    if not is_unicode(question):
        raise ConfigError(f"QUESTION is {question!r}, which is not valid Unicode: give it in UTF-8")


def is_many(image: str) -> bool:
    """Whether an IMAGE argument stands for many: a glob pattern, or a file of questions.

    Raises:
        ConfigError: for a pattern of URIs, or a folder.
    """
    if image.endswith(_QUESTIONS_SUFFIX):
        return True
    if "://" in image:  # where "?" and brackets are no pattern
        if "*" in image:
            raise ConfigError(
                f"{image}: patterns find files of this machine only; list URIs in a .jsonl of "
                "questions"
            )
        return False
    if os.path.isdir(os.path.expanduser(image)):
        raise ConfigError(
            f"{image}: is a folder; a pattern, in quotes, asks about all images in it: "
            f"'{os.path.join(image, '*.jpg')}'"
        )
    return glob.has_magic(image) and not Path(image).exists()


def read_asked(store: ArtifactStore, image: str, question: str | None) -> list[Asked]:
    """Questions of a JSONL file, or one question about every image that a pattern finds.

    Raises:
        ConfigError: naming the line or argument and the remedy.
        StoreError: naming an image whose path is not in UTF-8.
    """
    if not image.endswith(_QUESTIONS_SUFFIX):
        matching = glob.glob(os.path.expanduser(image), recursive=True)
        found = sorted(path for path in matching if not os.path.isdir(path))
        if not found:
            raise ConfigError(f"{image}: no image matches; check the pattern")
        if question is None or not question.strip():
            raise ConfigError("give a QUESTION to ask about these images")
        check_question(question)
        return [Asked(image=kept_address(path), question=question) for path in found]
    if question is not None:
        raise ConfigError(f"{image} holds the questions already: leave QUESTION out")
    address = absolute_uri(image)
    try:
        data = store.read_uri(address)
    except FileNotFoundError:
        raise ConfigError(f"{image}: no such file; check the path") from None
    except OSError as error:
        raise ConfigError(f"{image}: cannot be read ({one_line(error)}); check the path") from error
    rows = parse_lines(Asked, data, image)
    if not rows:
        raise ConfigError(f"{image}: holds no questions")
    folder, _ = folder_and_name(address)
    return [row.model_copy(update={"image": _resolved(row.image, folder)}) for row in rows]


def _resolved(image: str, folder: str) -> str:
    is_complete = "://" in image or Path(image).is_absolute()
    return image if is_complete else kept_address(f"{folder}/{image}")

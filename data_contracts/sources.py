"""Where questions and images come from, as data: formats, addresses, and which part is wanted.

An address is a local path or a URI: ``https://``, ``hf://datasets/owner/name/file``, ``s3://``,
``gs://``. A longer form (``RemoteFile``) adds mirrors, digest, size and licence.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from data_contracts.addresses import no_credentials
from data_contracts.base import Settings
from data_contracts.enums import BenchmarkTask

Address = Annotated[str, AfterValidator(no_credentials)]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]


class RemoteFile(Settings):
    """One published file."""

    uri: Address
    mirrors: tuple[Address, ...] = ()
    """Other addresses of the same bytes, tried in order when the first fails."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """None where no digest is published; then size and entity tag are what is verified."""
    num_bytes: int | None = Field(None, ge=0)
    licence: str | None = None
    """Shown before a download; for ``hf://`` the repository's own is taken."""


FileAddress = Annotated[str | RemoteFile, AfterValidator(no_credentials)]


class ImageFolder(Settings):
    """Image files in a folder."""

    type: Literal["folder"] = "folder"
    uri: Address
    folder: str | None = Field(None, pattern=r"^[^/]+$")
    """First folder of the record paths that it serves; None serves all, whole paths below it."""


class ImageArchive(Settings):
    """Image files in a zip or tar (plain or gzip), read where they lie without unpacking.

    A gzipped tar has no random access, so it is rewritten as a plain tar once.
    """

    type: Literal["archive"] = "archive"
    file: FileAddress
    folder: str | None = Field(None, pattern=r"^[^/]+$")
    """First folder of the record paths that it serves. ``gqa`` finds ``gqa/images/1.jpg`` as
    ``images/1.jpg`` or ``gqa/images/1.jpg``, below any other folders of the archive."""


ImagePlace = Annotated[ImageFolder | ImageArchive, Field(discriminator="type")]
ImagePlaces = Annotated[str | tuple[ImagePlace, ...], AfterValidator(no_credentials)]


def _image_places(images: str | tuple[ImagePlace, ...]) -> tuple[ImagePlace, ...]:
    return (ImageFolder(uri=images),) if isinstance(images, str) else images


class Selection(Settings):
    """Which records of a source are wanted; the others are counted but make no rows."""

    folders: tuple[str, ...] | None = None
    """First folders of image paths to take, for example ``[gqa, ocr_vqa]``; None takes all."""
    part: Literal["all", "train", "held_out"] = "all"
    """Share of the images, drawn by their content: no image is in both parts of one draw, whatever
    source it comes from."""
    held_out_ratio: float = Field(0.05, gt=0, lt=1)
    seed: int = 0
    """Of the draw."""
    repeats: bool = False
    """Keep a question that another record asks of the same picture too; a benchmark's rows all
    count, training data gains nothing from them."""

    def leaves_out(self, held_out: "Selection") -> bool:
        """Whether a ``train`` part has no image of a ``held_out`` part.

        Seed and content draw a number between 0 and 1 for an image, which is held out if the number
        is below the ratio: a smaller ratio holds out some of the same images.
        """
        if self.folders and held_out.folders and not {*self.folders} & {*held_out.folders}:
            return True
        return self.seed == held_out.seed and self.held_out_ratio >= held_out.held_out_ratio


class LlavaMixSource(Settings):
    """Question-image pairs in the format of LLaVA's instruction mix."""

    type: Literal["llava_mix"] = "llava_mix"
    name: SourceName
    records: FileAddress
    """JSON list of conversations, or JSON Lines."""
    images: ImagePlaces
    """Folder that the records' ``image`` paths start from, or several folders and archives."""
    boxes: FileAddress | None = None
    """JSONL with true boxes; evaluation alone reads it."""
    copy_images: bool = False
    """Copy the images into the artifact store; otherwise they are read where they are, which every
    worker must be able to do."""
    selection: Selection = Selection()
    expected_records: int | None = Field(None, gt=0)
    """About how many are in the chosen folders, for the plan of a dry run; None goes by the size
    of the file."""

    @property
    def image_places(self) -> tuple[ImagePlace, ...]:
        """The long form of ``images``: where to look for each image, in this order."""
        return _image_places(self.images)


class VisualCotSource(Settings):
    """Question-image-box triples as Visual-CoT publishes them: JSONL with ``question``, ``answer``,
    ``image`` and ``bboxs``."""

    type: Literal["visual_cot"] = "visual_cot"
    name: SourceName
    records: FileAddress
    images: ImagePlaces
    image_folder: str | None = None
    """Put before each record's ``image``, where that is a bare name; None takes the record's
    ``dataset``."""
    copy_images: bool = False
    selection: Selection = Selection()

    @property
    def image_places(self) -> tuple[ImagePlace, ...]:
        """The long form of ``images``: where to look for each image, in this order."""
        return _image_places(self.images)


class ParquetSource(Settings):
    """A hub dataset in Parquet whose rows carry the image's bytes."""

    type: Literal["parquet"] = "parquet"
    name: SourceName
    files: tuple[FileAddress, ...] = Field(min_length=1)
    """Addresses may hold ``*``: ``hf://datasets/owner/name/data/train-*.parquet``."""
    image_column: str = "image"
    """Bytes, or a struct with ``bytes`` (how ``datasets`` stores images)."""
    question_column: str = "question"
    answer_columns: tuple[str, ...] = ("answers", "answer")
    """The first that exists: text or a list of texts; none exists for unanswered questions."""
    id_column: str | None = None
    copy_images: bool = False
    selection: Selection = Selection()

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.image_column == self.question_column:
            raise ValueError("image_column and question_column are the same")
        return self


class SceneSource(Settings):
    """Generated scenes, written out as a LLaVA mix before anything reads them."""

    type: Literal["scenes"] = "scenes"
    name: SourceName
    num_images: int = Field(gt=0, le=1_000_000)
    seed: int = Field(0, ge=0)
    split: Literal["train", "validation", "test"] = "train"
    """Scenes of different splits never coincide."""
    print_scale: float = Field(1.0, gt=0)
    """1 for print that is unreadable at the model's input size, 4 for readable print."""

    @property
    def selection(self) -> Selection:
        """Everything: splits are generated apart."""
        return Selection()


class BenchmarkSource(Settings):
    """A public benchmark in the hub's Parquet format."""

    type: Literal["benchmark"] = "benchmark"
    task: BenchmarkTask
    files: Address | None = None
    """URI of the Parquet file, or of the folder that holds the split's files; None looks on the
    hub, under the data set's present id and its former one."""
    boxes: Address | None = None
    """URI of true boxes: a JSONL of ``{"question_id": ..., "box": [x0, y0, x1, y1]}``, or a file as
    published with TextVQA's, V*'s (a folder) or Visual-CoT's boxes."""
    max_documents: int | None = Field(None, gt=0)
    """Only the first ones, as lmms-eval's ``--limit``; None takes all."""

    @property
    def name(self) -> str:
        """Name among the run's sources."""
        return self.task.value

    @property
    def selection(self) -> Selection:
        """Everything, rows that ask the same of the same picture too."""
        return Selection(repeats=True)


FileSource = LlavaMixSource | VisualCotSource | ParquetSource
"""Sources whose data exists somewhere."""


def _a_mix_unless_said(source: object) -> object:
    if isinstance(source, dict) and "type" not in source:
        return {"type": "llava_mix", **source}
    return source


Source = Annotated[
    FileSource | SceneSource,
    Field(discriminator="type"),
    BeforeValidator(_a_mix_unless_said),
]
"""A LLaVA mix where no type is given."""

EvaluationSource = Annotated[
    FileSource | SceneSource | BenchmarkSource,
    Field(discriminator="type"),
    BeforeValidator(_a_mix_unless_said),
]


def remote_file(address: FileAddress) -> RemoteFile:
    """The long form of an address."""
    return RemoteFile(uri=address) if isinstance(address, str) else address

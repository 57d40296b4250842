"""Settings for what the authors of SD-RPN published."""

from pydantic import Field

from data_contracts.base import Settings
from data_contracts.configs import RecordsConfig
from data_contracts.enums import QuestionKind
from data_contracts.sources import Address


class PublishedLabels(Settings):
    """Label pickles of the authors (hub repository ``YuhengSSS/roi_pseudo``)."""

    name: str = Field("roi_pseudo", pattern=r"^[a-z0-9_-]+$")
    """Data set of images that lie in no folder."""
    files: tuple[Address, ...] = Field(min_length=1)
    """URIs of the pickles, in order; of a question in several, the first stays."""
    images: Address
    """URI of the folder that the rows' image paths start from."""
    datasets: dict[str, QuestionKind] = RecordsConfig().datasets
    """First folder of an image path -> kind of its questions."""
    default_kind: QuestionKind = RecordsConfig().default_kind
    rows_per_shard: int = Field(2048, gt=0)


class ImportedFrom(Settings):
    """Where an RPN that was not trained here comes from."""

    checkpoint: str
    """Name of the folder that it was read from."""
    architecture: str
    """Model class that the checkpoint names."""
    branch_layer_source: str
    """How the branch layer was found."""

"""What can be wrong with an artifact; every message names the object and the remedy."""

from tasks.storage.errors import StoreError


class ArtifactNotFound(StoreError):
    """No such artifact is committed."""


class RecipeMismatch(StoreError):
    """The address holds another recipe: the store was edited or damaged."""


class CorruptArtifact(StoreError):
    """Stored bytes are not those that were committed."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what

    def __str__(self) -> str:
        return "; ".join(self.args)

"""The source files, parsed, and what they import."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
LAYERS = ("data_contracts", "sdrpn_core", "tasks", "flows")
"""From the bottom up."""


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: str
    """Relative to the checkout."""
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """Top-level folder."""
        return self.path.partition("/")[0]

    @property
    def module(self) -> str:
        """Dotted name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything imported, inside functions too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.lineno, node.module
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)

    def calls(self) -> Iterator[tuple[int, str]]:
        """(line, source text of what is called) of every call."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node.lineno, ast.unparse(node.func)


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Python files below folders of the checkout, in order."""
    found = []
    for folder in folders:
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            found.append(Source(path.relative_to(CHECKOUT).as_posix(), text, ast.parse(text)))
    return tuple(found)


def product() -> tuple[Source, ...]:
    """Everything that is shipped."""
    return sources(*LAYERS)

"""The source files, parsed, and what they import."""

import ast
from dataclasses import dataclass
from functools import cache, cached_property
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

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """(line, dotted name) of everything imported, inside functions too."""
        found: list[tuple[int, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.append((node.lineno, node.module))
                found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        return found

    @cached_property
    def calls(self) -> list[tuple[int, str]]:
        """(line, source text of what is called) of every call."""
        return [
            (node.lineno, ast.unparse(node.func))
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call)
        ]


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Python files below folders of the checkout, in order."""
    paths = [path for folder in folders for path in sorted((CHECKOUT / folder).rglob("*.py"))]
    return tuple(_source(path) for path in paths)


@cache
def _source(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path.relative_to(CHECKOUT).as_posix(), text, ast.parse(text))


def product() -> tuple[Source, ...]:
    """Everything that is shipped."""
    return sources(*LAYERS)

"""Self-contained HTML pages in one style, each a template rendered here, and tables of Markdown."""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


def render_page(
    template: str, *, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any
) -> str:
    """HTML of a template in ``templates/``, its style sheet inline.

    Args:
        template: file name.
        filters: by the names that the template calls them.
        values: what the template shows; a name it uses and does not get is an error.
    """
    environment = Environment(
        loader=PackageLoader("sdrpn_core.report", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    css = resources.files("sdrpn_core.report").joinpath("templates/report.css").read_text("utf-8")
    return environment.get_template(template).render(css=Markup(css), **values)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows under their column names, all with the same columns."""
    names = list(rows[0]) if rows else []
    lines = [names, ["---"] * len(names), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

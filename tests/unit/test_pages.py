"""The guides lead somewhere: links between pages, and pages that the code names."""

import re
from pathlib import Path

from tests.architecture.source_tree import CHECKOUT, sources

README = CHECKOUT / "README.md"
PAGES = (README, *sorted((CHECKOUT / "docs").glob("*.md")))


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    kept = (re.sub(r"[^\w -]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def links(page: Path) -> list[str]:
    text = without_code(page)
    found = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [link for link in found if not link.startswith("https://")]


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.is_file() and (not anchor or anchor in anchors(target))


def test_links_lead_to_files_and_headings():
    given = [(page, link) for page in PAGES for link in links(page)]
    assert len(given) > len(PAGES)
    assert [(page.name, link) for page, link in given if not leads_somewhere(page, link)] == []


def test_the_readme_names_every_page():
    named = {(CHECKOUT / link.partition("#")[0]).resolve() for link in links(README)}
    assert {page.resolve() for page in PAGES} - {README.resolve()} <= named


def test_every_measurement_is_named_by_a_page_and_every_named_command_is_there():
    """Three measurements were made once and then known to nobody."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"python\s+-m\s+((?:benchmarks|tests)\.[\w.]*\w)", text))
    runnable = {source.module for source in sources("benchmarks") if "__main__" in source.text}
    assert runnable
    assert runnable - named == set()
    files = {module: CHECKOUT / f"{module.replace('.', '/')}.py" for module in named}
    assert [module for module, file in files.items() if not file.is_file()] == []


def test_pages_that_the_code_names_are_there():
    named = {
        (source.path, page)
        for source in sources("benchmarks", "data_contracts", "flows", "sdrpn_core", "tasks")
        for page in re.findall(r"\bdocs/[\w-]+\.md", source.text)
    }
    assert named
    assert [(path, page) for path, page in named if not (CHECKOUT / page).is_file()] == []


def test_the_page_for_developers_names_files_that_are_there():
    page = (CHECKOUT / "docs" / "development.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", page)
    assert len(named) > 20
    assert [path for path in named if not (CHECKOUT / path).exists()] == []

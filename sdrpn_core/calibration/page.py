"""Calibration's findings as a self-contained HTML page in the report's style, and as Markdown."""

from markupsafe import Markup

from data_contracts.wording import markdown
from sdrpn_core.calibration.evidence import CalibrationResult
from sdrpn_core.calibration.profile_file import profile_yaml
from sdrpn_core.calibration.tables import MEASURES, tables
from sdrpn_core.report import pages


def render_page(result: CalibrationResult) -> str:
    """HTML with style, heat map and tables inline."""
    evidence = result.evidence
    return pages.render_page(
        "calibration.html.j2",
        title=f"Calibration of {result.profile.name}",
        facts=_facts(result),
        heat_map=Markup(result.heat_map()),
        measures=MEASURES,
        tables=tables(result),
        chosen_by="true boxes" if evidence.settings.method == "boxes" else "attention alone",
        profile=profile_yaml(result.profile),
    )


def render_markdown(result: CalibrationResult) -> str:
    """The same facts and tables, to be kept beside a profile or in a repository."""
    lines = [f"# Calibration of {markdown(result.profile.name)}", ""]
    lines += [f"- {name}: {markdown(value)}" for name, value in _facts(result)]
    lines += ["", MEASURES]
    for title, rows in tables(result).items():
        lines += ["", f"## {title}", "", pages.markdown_table(rows)]
    return "\n".join(lines) + "\n"


def _facts(result: CalibrationResult) -> list[tuple[str, str]]:
    profile, evidence = result.profile, result.evidence
    asked = sum(evidence.num_questions.values())
    quality = evidence.overall_quality
    return [
        ("Model", profile.model_id),
        ("Layers x heads", f"{profile.num_layers} x {profile.num_heads}"),
        ("Scenes", str(evidence.settings.num_scenes)),
        ("Questions used", f"{asked} of {asked + evidence.num_unusable}"),
        ("Centre precision of labels, unseen scenes", f"{quality.centre_precision:.3f}"),
        ("Recall of labels, unseen scenes", f"{quality.recall:.3f}"),
    ]

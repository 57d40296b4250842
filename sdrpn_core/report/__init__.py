"""Reports: one self-contained HTML page of what a run did, measured and got wrong."""

from sdrpn_core.report.data import ArtifactLine, Example, GivenAnswer, Outcome, ReportData
from sdrpn_core.report.render import render_report

__all__ = ["ArtifactLine", "Example", "GivenAnswer", "Outcome", "ReportData", "render_report"]

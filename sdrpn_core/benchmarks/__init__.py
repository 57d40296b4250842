"""Benchmarks: documents, and one scoring rule per benchmark name."""

from sdrpn_core.benchmarks.document import Document
from sdrpn_core.benchmarks.scoring import UnknownBenchmark, known_benchmarks, score

__all__ = ["Document", "UnknownBenchmark", "known_benchmarks", "score"]

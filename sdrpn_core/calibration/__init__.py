"""Calibration: a new model's profile, found on scenes whose regions are known.

``scene_examples`` asks about generated scenes, ``calibrate`` finds what a ``ModelProfile`` must
say, ``sdrpn calibrate`` does both and writes profile and evidence.
"""

from sdrpn_core.calibration.branch import ComparedBranches
from sdrpn_core.calibration.draft import draft_profile
from sdrpn_core.calibration.evidence import CalibrationEvidence, CalibrationResult
from sdrpn_core.calibration.examples import CalibrationError, CalibrationExample, scene_examples
from sdrpn_core.calibration.search import STAGE_VERSION, CalibrationObserver, calibrate

__all__ = [
    "STAGE_VERSION",
    "CalibrationError",
    "CalibrationEvidence",
    "CalibrationExample",
    "CalibrationObserver",
    "CalibrationResult",
    "ComparedBranches",
    "calibrate",
    "draft_profile",
    "scene_examples",
]

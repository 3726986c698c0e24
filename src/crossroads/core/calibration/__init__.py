"""Calibration: how far a confidence can be trusted, and when to act on it.

``scores`` measures confidences: calibration errors, reliability and risk-coverage curves.
``activation``, ``neighbours``, ``training``, ``region`` and ``estimator`` are the
Similarity-Distance-Magnitude estimator, ``index`` its earlier calibration and ``baselines`` what
they are compared with.
"""

from crossroads.core.calibration.estimator import (
    Estimate,
    SdmEstimator,
    fit_estimators,
    unanimous,
)
from crossroads.core.calibration.index import IndexCalibration, IndexEstimate
from crossroads.core.calibration.scores import (
    ReliabilityCurve,
    area_under_risk_coverage,
    brier,
    coverage_at_risk,
    expected_calibration_error,
    reliability_curve,
    risk_coverage,
)
from crossroads.core.calibration.training import SdmSettings

__all__ = [
    "Estimate",
    "IndexCalibration",
    "IndexEstimate",
    "ReliabilityCurve",
    "SdmEstimator",
    "SdmSettings",
    "area_under_risk_coverage",
    "brier",
    "coverage_at_risk",
    "expected_calibration_error",
    "fit_estimators",
    "reliability_curve",
    "risk_coverage",
    "unanimous",
]

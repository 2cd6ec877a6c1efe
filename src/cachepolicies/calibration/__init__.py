"""Calibration: measure a denoiser's sensitivities once, into a profile."""

from __future__ import annotations

from cachepolicies.calibration.count import EvaluationCount as EvaluationCount
from cachepolicies.calibration.count import evaluations_needed as evaluations_needed
from cachepolicies.calibration.depth import plan_depth as plan_depth
from cachepolicies.calibration.driver import calibrate_denoiser as calibrate_denoiser
from cachepolicies.calibration.entry import calibrate as calibrate
from cachepolicies.calibration.partial import clear_checkpoint as clear_checkpoint
from cachepolicies.calibration.pipeline import calibrate_pipeline as calibrate_pipeline
from cachepolicies.calibration.places import measure_places as measure_places
from cachepolicies.calibration.refine import Refinement as Refinement
from cachepolicies.calibration.refine import refine as refine
from cachepolicies.calibration.samples import CalibrationSamples as CalibrationSamples
from cachepolicies.calibration.trials import try_plans as try_plans
from cachepolicies.calibration.weights import weight_steps as weight_steps
from cachepolicies.schedulers.impulse import ImpulseResponse as ImpulseResponse
from cachepolicies.schedulers.impulse import impulse_response as impulse_response

__all__ = [
    "CalibrationSamples",
    "EvaluationCount",
    "ImpulseResponse",
    "Refinement",
    "calibrate",
    "calibrate_denoiser",
    "calibrate_pipeline",
    "clear_checkpoint",
    "evaluations_needed",
    "impulse_response",
    "measure_places",
    "plan_depth",
    "refine",
    "try_plans",
    "weight_steps",
]

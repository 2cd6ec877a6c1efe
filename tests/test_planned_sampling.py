"""Plans on the trained models: repeated on the calibration runs, within budget and better on other samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

import attrs
import pytest
import torch

from cachepolicies import (
    CachedDenoiser,
    CalibrationSamples,
    SettingsError,
    calibrate,
    load_profile,
    plan,
    row_rms,
    sample,
)
from cachepolicies.comparison.workload import Workload
from cachepolicies.planning import Plan
from cachepolicies.planning.simulate import simulate
from cachepolicies.policies import Schedule, SenCache
from cachepolicies.reference import image_dit as image
from cachepolicies.reference.workloads import image_dit, video_dit
from cachepolicies.schedulers.from_diffusers import from_class_name
from cachepolicies.scores import score_of
from cachepolicies.scores.displacement import Displacement
from cachepolicies.substitutes.resolve import substitute_on

WORKLOADS: dict[str, Callable[[], Workload]] = {"video-dit": video_dit, "image-dit": image_dit}
HELD_OUT = range(4)
"""Seeds; the calibration's begin at 1000."""


@functools.cache
def workload(model: str):
    return WORKLOADS[model]()


@functools.cache
def planned(model: str, budget: int, substitute: str = "hold", **options) -> Plan:
    return plan(load_profile(model), budget, substitute=substitute, **options)


def sampled(model: str, seeds, policy=None, steps: int = 50, **options):
    w = workload(model)
    inputs = w.draw(seeds)
    denoiser = w.denoiser if policy is None else CachedDenoiser(w.denoiser, policy, scheduler=w.scheduler, **options)
    with torch.no_grad():
        return sample(denoiser, w.scheduler, inputs.noise, *inputs.args, num_steps=steps), denoiser


@pytest.mark.parametrize("substitute", ["hold", "linear", "linear:time=path", "quadratic"])
@pytest.mark.parametrize("budget", [10, 13, 17, 25, 31])
def test_the_planned_tolerance_repeats_the_plan_on_the_mean_of_the_calibration_runs(budget, substitute):
    for model in WORKLOADS:
        made, profile = planned(model, budget, substitute), load_profile(model)
        assert made.tolerance is not None, made.no_tolerance
        score = score_of("substitute", profile, substitute_on(substitute, workload(model).scheduler, profile))
        displacement = Displacement(profile).table(profile.timesteps).mean(axis=2)
        tolerance = [made.tolerance.at(t) for t in profile.timesteps]
        assert simulate(score, tolerance, profile.timesteps, displacement) == made.refreshes
        assert len(made.refreshes) <= budget


@pytest.mark.parametrize(
    ("model", "budget", "substitute"),
    [
        ("video-dit", 25, "hold"),
        ("image-dit", 25, "hold"),
        ("image-dit", 17, "hold"),
        ("image-dit", 13, "hold"),
        ("image-dit", 17, "linear:time=path"),
        ("video-dit", 17, "linear:time=path"),
    ],
)
def test_on_other_samples_the_planned_tolerance_takes_the_budget(model, budget, substitute):
    policy = SenCache(epsilon=planned(model, budget, substitute))
    _, denoiser = sampled(model, HELD_OUT, policy, profile=model, substitute=substitute)
    assert abs(denoiser.nfe - budget) <= 1


@functools.cache
def image_with_unipc(first: int, count: int):
    """The image model under a sampler that moves a latent differently where outputs are reused; no weights."""
    scheduler = from_class_name(
        "UniPCMultistepScheduler", **{**image.SCHEDULE, "prediction_type": "epsilon"}, solver_order=2
    )
    w = attrs.evolve(workload("image-dit"), scheduler=scheduler)
    seeds = range(first, first + count)
    drawn = w.draw(seeds)
    samples = CalibrationSamples(noise=drawn.noise, args=drawn.args, seeds=seeds)
    return w, calibrate(w.denoiser, scheduler, samples, num_steps=50, weights=False, name="unipc", progress=False)


@pytest.mark.parametrize("budget", [13, 25])
@pytest.mark.parametrize("substitute", ["linear", "linear:time=path"])
@pytest.mark.parametrize("calibrated", [(1000, 4), (2000, 8)])
def test_the_budget_is_kept_where_reuse_itself_moves_the_latent(calibrated, substitute, budget):
    """A first streak of UniPC moves the latent up to twice as far as calibration did, which says nothing about errors.

    With a score proportional to the displacement the first four took 14.75, 14.75, 26.75 and 26.75 evaluations; with
    the slope of error over displacement itself, which chance makes 0.3 to 0.5 in the others, 15 and 26.5.
    """
    w, profile = image_with_unipc(*calibrated)
    made = plan(profile, budget, substitute=substitute, weights="uniform")
    denoiser = CachedDenoiser(
        w.denoiser, SenCache(epsilon=made), scheduler=w.scheduler, profile=profile, substitute=substitute
    )
    drawn = w.draw(HELD_OUT)
    with torch.no_grad():
        sample(denoiser, w.scheduler, drawn.noise, *drawn.args, num_steps=50)
    assert abs(denoiser.nfe - budget) <= 1


@pytest.mark.parametrize(("model", "samples"), [("video-dit", 2), ("image-dit", 8)])
def test_planned_extrapolation_beats_fewer_steps_and_even_spacing(model, samples):
    """17 evaluations of 50 on samples that the calibration did not see; on the video model holding does, too."""
    seeds = range(100, 100 + samples)
    reference, _ = sampled(model, seeds)

    def error(policy, substitute="hold", steps=50):
        options = {} if policy is None else {"substitute": substitute}
        found, denoiser = sampled(model, seeds, policy, steps, **options)
        assert policy is None or denoiser.nfe == 17
        return row_rms(found - reference).mean().item()

    hold = error(Schedule(plan=planned(model, 17)))
    linear = error(Schedule(plan=planned(model, 17, "linear")), "linear")
    even = error("uniform:evaluations=17", "linear")
    fewer = error(None, steps=17)
    assert linear < min(hold, even, fewer)
    if model == "video-dit":
        assert hold < 0.5 * fewer


@pytest.mark.parametrize(("substitute", "score"), [("hold", "correlated"), ("linear", "bound")])
def test_a_plans_tolerance_is_refused_with_another_score(substitute, score):
    policy = SenCache(epsilon=planned("image-dit", 17, substitute), score=score)
    with pytest.raises(SettingsError, match=r"fitted to the score '(bound|extrapolation)'.*compares it with"):
        sampled("image-dit", range(1), policy, profile="image-dit", substitute=substitute)


def test_a_plan_for_another_scheduler_says_where_its_weights_are_from():
    profile = load_profile("video-dit")
    other = plan(profile, 20, errors="predicted", scheduler="flow-euler:shift=3")
    assert "the weights were measured with the scheduler flow-euler" in other.notes
    assert not planned("video-dit", 25).notes


def test_a_monotone_tolerance_is_monotone_or_the_plan_says_why_there_is_none():
    made = plan(load_profile("video-dit"), 17, shape="monotone")
    assert (made.tolerance is None) != (made.no_tolerance is None)
    even = plan(load_profile("image-dit"), 25, shape="monotone", weights="uniform", max_reuse=1)
    for found in (made, even):
        if found.tolerance is not None:
            steps = [b - a for a, b in pairwise(found.tolerance.epsilon)]
            assert all(s >= -1e-12 for s in steps) or all(s <= 1e-12 for s in steps)
        else:
            assert found.no_tolerance is not None
            assert "monotone" in found.no_tolerance

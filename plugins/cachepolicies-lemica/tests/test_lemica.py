"""The policy in a denoiser; its name is registered as if the package were installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from cachepolicies import (
    CachedDenoiser,
    CachePolicy,
    CalibrationSamples,
    NeedsError,
    Plan,
    PolicySettings,
    Profile,
    SettingsError,
    Trace,
    calibrate,
    plan,
    sample,
)
from cachepolicies.reference.gaussian_mixture import FlowMatching, GaussianMixtureDenoiser
from cachepolicies.testing import registered
from cachepolicies_lemica import FollowsPlan, LeMiCa, LexicographicMinimax
from cachepolicies_lemica import plugin as lemica

STEPS = 20

Make = Callable[..., CachedDenoiser]


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's name."""
    with registered(lemica, "cachepolicies-lemica"):
        yield


def mixture() -> GaussianMixtureDenoiser:
    """Return an exact denoiser: the velocity of a mixture of Gaussians."""
    return GaussianMixtureDenoiser(
        means=torch.tensor([[-2.0, 0.0, 1.0], [2.0, 1.0, 0.0]]),
        variances=torch.tensor([0.1, 0.3]),
        weights=torch.tensor([0.5, 0.5]),
        schedule=FlowMatching(horizon=1000),
    )


@pytest.fixture(scope="module")
def profile() -> Profile:
    """Return what calibration measures of it, with a weight for every step."""
    samples = CalibrationSamples.from_seeds(range(8), (3,))
    return calibrate(mixture(), "flow-euler", samples, num_steps=STEPS, weights=True, progress=False)


@pytest.fixture
def make(profile: Profile) -> Make:
    """Return a function that caches the denoiser with this profile."""

    def made(policy: Any, **options: Any) -> CachedDenoiser:
        given: dict[str, Any] = {"profile": profile, "scheduler": "flow-euler"} | options
        return CachedDenoiser(mixture(), policy, **given)

    return made


def noise() -> Tensor:
    """Return the same noise every time."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def plan_of(denoiser: CachedDenoiser) -> Plan:
    """Return the plan that a denoiser follows."""
    assert isinstance(denoiser.policy, FollowsPlan)
    return denoiser.policy.plan


def evaluated(trace: Trace) -> tuple[int, ...]:
    """Return the evaluated steps; of all rows, or of none."""
    assert all(len(set(record.evaluated)) == 1 for record in trace.records)
    return tuple(record.index for record in trace.records if record.evaluated[0] and record.index is not None)


def test_it_keeps_the_contract() -> None:
    """Settings, without a plan to follow before they are resolved."""
    assert isinstance(LeMiCa(evaluations=5), PolicySettings)
    assert not isinstance(LeMiCa(evaluations=5), CachePolicy)


@pytest.mark.parametrize("substitute", ["hold", "linear", "linear:time=path", "taylor:order=2,guard=None"])
@pytest.mark.parametrize("weights", ["measured", "bound", "uniform"])
@pytest.mark.parametrize("evaluations", [5, 8, 13])
def test_it_evaluates_what_was_planned(
    make: Make, profile: Profile, substitute: str, weights: Any, evaluations: int
) -> None:
    """The plan is that of the objective, for the substitute in use, and the run follows it."""
    policy = LeMiCa(evaluations=evaluations, max_reuse=6, weights=weights)
    denoiser = make(policy, substitute=substitute)
    wanted = plan(
        profile,
        evaluations,
        objective=LexicographicMinimax(),
        substitute=substitute,
        max_reuse=6,
        weights=weights,
        scheduler="flow-euler",
    )
    made = plan_of(denoiser)
    assert made == evolve(wanted, substitute=made.substitute)  # a spec may be written in several ways
    assert made.substitute.partition(":")[0] == denoiser.substitute.name
    assert wanted.objective == "lemica"
    sample(denoiser, "flow-euler", noise(), num_steps=STEPS)
    assert evaluated(denoiser.trace) == wanted.refreshes
    assert denoiser.nfe == len(wanted.refreshes) <= evaluations
    assert denoiser.settings is policy  # which was not changed
    assert policy == LeMiCa(evaluations=evaluations, max_reuse=6, weights=weights)


def test_substitutes_have_plans_of_their_own(make: Make) -> None:
    """Planned for hold and planned for linear are not the same."""
    plans = {name: plan_of(make("lemica:evaluations=8", substitute=name)) for name in ("hold", "linear")}
    assert plans["hold"].refreshes != plans["linear"].refreshes


def test_it_is_found_by_name(make: Make) -> None:
    """The entry point makes the name known, with settings in the spec."""
    denoiser = make("lemica:evaluations=7,max_reuse=4,weights=uniform")
    assert isinstance(denoiser.settings, LeMiCa)
    sample(denoiser, "flow-euler", noise(), num_steps=STEPS)
    assert denoiser.nfe <= 7
    assert set(denoiser.trace.reasons()) == {"scheduled evaluation", "scheduled reuse"}


def test_as_many_evaluations_as_steps_are_the_bare_model(make: Make) -> None:
    """Bit for bit."""
    denoiser = make(LeMiCa(evaluations=STEPS))
    assert not denoiser.policy.reuses
    cached, bare = (sample(model, "flow-euler", noise(), num_steps=STEPS) for model in (denoiser, mixture()))
    assert torch.equal(cached, bare)


def test_more_evaluations_are_nearer_to_the_bare_samples(make: Make) -> None:
    """On the denoiser that was calibrated."""
    bare = sample(mixture(), "flow-euler", noise(), num_steps=STEPS)

    def error(evaluations: int) -> float:
        denoiser = make(LeMiCa(evaluations=evaluations))
        return float((sample(denoiser, "flow-euler", noise(), num_steps=STEPS) - bare).square().mean().sqrt())

    assert error(16) < error(8) < error(3)


def test_another_number_of_steps_is_refused(make: Make) -> None:
    """As by the policy ``schedule``, before anything is computed."""
    denoiser = make(LeMiCa(evaluations=8))
    with pytest.raises(SettingsError, match=r"this run has others: .* has 20 steps, and the run has 30"):
        sample(denoiser, "flow-euler", noise(), num_steps=30)


def test_the_run_has_to_be_declared(make: Make) -> None:
    """A step is known by its place in the run."""
    with pytest.raises(NeedsError, match="run length"):
        make(LeMiCa(evaluations=8))(noise(), 1000.0)


def test_what_is_missing_is_said_at_set_up(make: Make, profile: Profile) -> None:
    """A profile, its table, its weights."""
    with pytest.raises(NeedsError, match="'lemica' needs a profile with change, weight"):
        make(LeMiCa(evaluations=8), profile=None)
    bare = evolve(profile, tables={})
    with pytest.raises(NeedsError, match="'change'"):
        make(LeMiCa(evaluations=8), profile=bare)
    unweighted = evolve(profile, curves={name: curve for name, curve in profile.curves.items() if name != "weight"})
    with pytest.raises(NeedsError, match="'weight'"):
        make(LeMiCa(evaluations=8), profile=unweighted)
    make(LeMiCa(evaluations=8, weights="uniform"), profile=unweighted)


def test_the_wrong_axis_is_refused(make: Make) -> None:
    """A plan is for the profile's scheduler; a substitute with one of its own may extrapolate along another axis."""
    make(LeMiCa(evaluations=8), substitute="linear:scheduler=flow-euler")
    with pytest.raises(SettingsError, match="is in use"):
        make(LeMiCa(evaluations=8), substitute="linear:time=log-snr,scheduler=ddim")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lemica", "missing setting evaluations"),
        ("lemica:evaluations=0", "evaluations=0"),
        ("lemica:evaluations=few", "evaluations='few'"),
        ("lemica:evaluations=8,max_reuse=-1", "max_reuse=-1"),
        ("lemica:evaluations=8,weights=guessed", "weights='guessed'"),
        ("lemica:evaluation=8", "did you mean 'evaluations'"),
        ("lemica:evaluations=21", "evaluations=21.* budget is 21, expected from 1 to the number of steps, 20"),
        ("lemica:evaluations=4,max_reuse=2", "budget 4 and max_reuse 2 on 20 steps clash"),
    ],
)
def test_wrong_settings_are_refused(make: Make, spec: str, message: str) -> None:
    """The message names the setting and the value."""
    with pytest.raises(SettingsError, match=message):
        make(spec)

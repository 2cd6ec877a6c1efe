"""What no contract promises, as properties: the bound and its units; and all parts together on real networks.

What a contract promises of one part alone is in `cachepolicies.testing`, and `test_contracts.py` runs it.
"""

from __future__ import annotations

import contextlib
import functools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies import CachedDenoiser, CalibrationSamples, calibrate, row_rms, sample
from cachepolicies.adapters import network_of
from cachepolicies.base.outputs import tensor_of
from cachepolicies.reference.gaussian_mixture import FlowMatching, GaussianMixtureDenoiser
from cachepolicies.registry.load import load_plugins
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE, Counted, mixture
from subjects import NAMES, Subject, subject

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

STEPS = 10
EXAMPLES = {"mixture": 30, "video-dit": 5, "image-dit": 8}

subjects = pytest.mark.parametrize("name", NAMES)

tolerances = st.floats(1e-3, 3.0)
reuses = st.integers(1, 5)
seeds = st.integers(0, 2**16)


def on(name: str):
    """Settings of a property: fewer examples where one costs more."""

    def configure(test):
        return settings(max_examples=EXAMPLES[name], suppress_health_check=[HealthCheck.function_scoped_fixture])(test)

    return configure


def cached(s: Subject, model=None, **options) -> CachedDenoiser:
    options = {"epsilon_start": 1e9, "max_reuse": 3} | options
    return CachedDenoiser(s.model if model is None else model, "sencache", profile=s.profile, **options)


@torch.no_grad()
def run(s: Subject, denoiser, rows: int, seed: int, steps: int = STEPS) -> Tensor:
    conditioning: dict[str, Any]
    x, conditioning = s.inputs(rows, seed)
    return sample(denoiser, s.scheduler, x, num_steps=steps, **conditioning)


@subjects
def test_reuse_is_bounded_in_number_and_score(name):
    """Never more than max_reuse reuses in a row, per sample and branch; a reuse's score is within its tolerance."""
    s = subject(name)

    @on(name)
    @given(seeds, tolerances, reuses, st.sampled_from(["shared", "independent"]))
    def holds(seed, epsilon, max_reuse, branches):
        denoiser = cached(s, epsilon=epsilon, max_reuse=max_reuse, branches=branches)
        x, conditioning = s.inputs(2, seed)
        timesteps = s.scheduler.timesteps(STEPS)
        with torch.no_grad(), denoiser.run(timesteps=timesteps) as trace:
            for t in timesteps:
                for branch in ("cond", "uncond"):
                    denoiser(x, torch.full((2,), t), branch=branch, **conditioning)
                x = x * (1 - 0.3 / STEPS)
        for branch in ("cond", "uncond"):
            streak = np.zeros(2, dtype=int)
            for record in (r for r in trace.records if r.branch == branch):
                reused = ~np.array(record.evaluated)
                streak = np.where(reused, streak + 1, 0)
                assert streak.max() <= max_reuse
                if reused.any():
                    assert all(np.array(record.score)[reused] <= np.array(record.tolerance)[reused])
                    assert all(np.array(record.tolerance)[reused] == epsilon)

    holds()


@settings(max_examples=40)
@given(seeds, st.floats(0.01, 2.0), st.integers(1, 8), st.integers(5, 40))
def test_the_bound_holds_at_every_reuse(seed, epsilon, max_reuse, steps):
    """True change <= L_x |dx| + L_t |dt| with the local Lipschitz constants of the analytic denoiser."""
    s, model = subject("mixture"), mixture()
    denoiser = cached(s, epsilon=epsilon, max_reuse=max_reuse)
    x, _ = s.inputs(2, seed)
    reference: list[tuple[Tensor, float] | None] = [None, None]
    timesteps = s.scheduler.timesteps(steps)
    checked = 0
    with denoiser.run(timesteps=timesteps) as trace:
        for t, end in pairwise((*timesteps, 0.0)):
            y = denoiser(x, t)
            for row in range(2):
                if trace.records[-1].evaluated[row]:
                    reference[row] = (x[row : row + 1].clone(), t)
                    continue
                held = reference[row]
                assert held is not None
                here, there = x[row : row + 1].double(), held[0].double()
                l_x, l_t = model.lipschitz(there, held[1], here, t)
                true = row_rms(model(here, t) - y[row : row + 1])
                bound = l_x * row_rms(here - there) + l_t * abs(t - held[1])
                assert true.item() <= bound.item() * (1 + 1e-4) + 1e-6
                checked += 1
            x = x + (end - t) / 1000 * y
    assume(checked)


def test_first_order_estimate_is_of_second_order():
    """|f(x+dx, t+dt) - f - J dx - df/dt dt| shrinks at least as step^2 (measured order >= 1.8)."""
    model = mixture()

    @settings(max_examples=40)
    @given(seeds, st.floats(100.0, 900.0))
    def holds(seed, t):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
        dx = torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
        sizes = [0.02 / 2**k for k in range(5)]
        errors = []
        for h in sizes:
            true = model(x + h * dx, t - 300 * h) - model(x, t)
            first = h * model.jvp(x, t, dx) - 300 * h * model.time_derivative(x, t)
            errors.append(row_rms(true - first).item())
        order = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
        assert order >= 1.8

    holds()


@pytest.mark.parametrize("prediction", ["velocity", "noise", "x0"])
def test_the_score_is_a_first_order_bound(prediction):
    """The estimate |J dx| + |df/dt dt| exceeds the true change up to second order in the step."""
    model = mixture(prediction)

    @settings(max_examples=30)
    @given(seeds, st.floats(100.0, 900.0))
    def holds(seed, t):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
        dx = torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
        excess = []
        for h in (0.02, 0.01, 0.005):
            score = model.sensitivity(x, t, dx) * row_rms(h * dx) + model.rate(x, t) * 300 * h
            true = row_rms(model(x + h * dx, t - 300 * h) - model(x, t))
            excess.append(max(0.0, (true - score).item()) / h**2)
        assert max(excess[1:]) <= 1.5 * excess[0] + 1e-3

    holds()


@pytest.mark.parametrize("prediction", ["velocity", "noise", "x0"])
def test_calibrated_sensitivities_approach_the_closed_form(prediction):
    """Within 2 % of |J dx|/|dx| and |df/dt| as the step shrinks."""
    model = mixture(prediction)
    samples = CalibrationSamples(
        noise=torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), seeds=range(2)
    )
    data = mixture().sample(2, torch.Generator().manual_seed(1)).double()
    worst = []
    for steps in (100, 800) if prediction == "x0" else (50, 400):
        points: dict[float, tuple[Tensor, Tensor]] = {}

        def probe(x, t, model=model, points=points):
            points.setdefault(t[0].item(), (x.clone(), t.clone()))
            return model(x, t)

        scheduler = FlowEuler()
        if prediction == "velocity":
            options: dict[str, Any] = {"batch_size": 4, "progress": False, "name": "p", "weights": False}
            profile = calibrate(probe, scheduler, samples, num_steps=steps, **options)
        else:
            # the sampler's steps follow the velocity; what is measured along them is this prediction
            profile = calibrate(
                probe,
                scheduler,
                CalibrationSamples(noise=samples.noise, data=data),
                num_steps=steps,
                trajectory="noised",
                batch_size=4,
                progress=False,
                name="p",
            )
        ts = profile.timesteps
        errors = []
        for k, t in enumerate(ts[:-1]):
            # the derivatives of x0 vanish towards the ends, at t = 1000 exactly: no relative error there
            if prediction == "x0" and not 150 <= t <= 850:
                continue
            x, after = points[t][0], points[ts[k + 1]][0]
            exact_x = model.sensitivity(x, t, after - x).mean().item()
            exact_t = model.rate(x, t).mean().item()
            errors.append(abs(profile.curves["alpha_x"].at(t) / exact_x - 1))
            errors.append(abs(profile.curves["alpha_t"].at(t) / exact_t - 1))
        worst.append(max(errors))
    assert worst[1] <= 0.02
    assert worst[1] < worst[0] / 4


POLICIES: dict[str, dict[str, Any]] = {
    "never": {},
    "uniform": {"every": 3},
    "sencache": {"epsilon": 0.5, "epsilon_start": 0.2},
    "schedule": {"refreshes": (0, 1, 2, 4, 7), "num_steps": STEPS},
    "magcache": {"threshold": 0.3, "retention_ratio": 0.1},
    "teacache": {"threshold": 0.3, "signal": "modulated_input"},
}
"""Policies, and how each is built."""

SUBSTITUTES = ("hermite", "hold", "linear", "quadratic", "taylor:order=2", "taylor:order=2,differences=taylorseer")
"""Substitutes, and further settings that change what is predicted."""

RATIOS = {"ratios": (1.0, *[0.98] * 49)}
"""For a model that none were measured on."""


def settings_of(policy: str, network: bool) -> dict:
    more = dict(RATIOS) if policy == "magcache" and not network else {}
    return POLICIES[policy] | more


pairs = pytest.mark.parametrize(
    ("name", "policy", "substitute"),
    [
        *(("mixture", policy, spec) for policy in POLICIES if policy != "teacache" for spec in SUBSTITUTES[::2]),
        *(("mixture", "sencache", spec) for spec in SUBSTITUTES[1::2]),
        ("video-dit", "sencache", "linear"),
        ("video-dit", "teacache", "quadratic"),
        ("image-dit", "schedule", "linear"),
        ("image-dit", "magcache", "hermite"),
        ("image-dit", "teacache", "taylor:order=2"),
    ],
)
"""All of them on the mixture, which has no blocks to look into; a few on the trained networks."""

few = st.integers(0, 2**16)


def few_on(name: str):
    return settings(
        max_examples=2 if name == "mixture" else 1, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


@functools.cache
def made(name: str, policy: str, substitute: str):
    """The policy of a pair, set up once: the score of an extrapolation is fitted to the profile's tables."""
    s = subject(name)
    network = network_of(s.model) is not None
    inner = load_plugins().policies.create(policy, **settings_of(policy, network))
    return wrapped(name, inner, substitute).policy


def wrapped(name: str, policy, substitute: str, model=None, **options) -> CachedDenoiser:
    """A denoiser cut at the blocks of a network, at the output of a function."""
    s = subject(name)
    site = "output" if network_of(s.model) is None else "blocks"
    usual: dict[str, Any] = {"profile": s.profile, "scheduler": s.scheduler, "substitute": substitute, "site": site}
    return CachedDenoiser(s.model if model is None else model, policy, **usual | options)


def paired(name: str, policy: str, substitute: str, **options) -> CachedDenoiser:
    return wrapped(name, made(name, policy, substitute), substitute, **options)


@pairs
def test_a_batch_decides_as_its_samples_do_for_every_pair(name, policy, substitute):
    s = subject(name)
    rows = 4 if name == "mixture" else 2

    @few_on(name)
    @given(few)
    def holds(seed):
        together = paired(name, policy, substitute)
        batch = run(s, together, rows, seed)
        records = together.trace.records
        margins = [
            abs(score - tolerance)
            for record in records
            for score, tolerance in zip(record.score or (), record.tolerance or (), strict=False)
        ]
        assume(min(margins, default=1.0) > 1e-4)  # a tie is decided by rounding
        x, conditioning = s.inputs(rows, seed)
        singles = []
        for row in range(rows):
            alone = paired(name, policy, substitute)
            kwargs: dict[str, Any] = {key: value[row : row + 1] for key, value in conditioning.items()}
            with torch.no_grad():
                single = sample(alone, s.scheduler, x[row : row + 1], num_steps=STEPS, **kwargs)
            torch.testing.assert_close(single[0], batch[row], rtol=1e-3, atol=1e-3)
            singles.append(alone.trace.records)
        for record, *ones in zip(records, *singles, strict=True):
            assert record.evaluated == tuple(one.evaluated[0] for one in ones)
            if record.order is not None:
                assert record.order == tuple(one.order[0] if one.order else None for one in ones)

    holds()


@pairs
def test_branches_do_not_see_each_other_for_every_pair(name, policy, substitute):
    """Independent branches return what separate wrappers return, bit for bit."""
    s = subject(name)

    @few_on(name)
    @given(few)
    def holds(seed):
        both = paired(name, policy, substitute, branches="independent")
        separate = {branch: paired(name, policy, substitute) for branch in ("cond", "uncond")}
        inputs = {"cond": s.inputs(2, seed), "uncond": s.inputs(2, seed + 1)}
        timesteps = s.scheduler.timesteps(STEPS)
        x = inputs["cond"][0]
        with contextlib.ExitStack() as runs, torch.no_grad():
            for denoiser in (both, *separate.values()):
                runs.enter_context(denoiser.run(timesteps=timesteps))
            for t in timesteps:
                level = torch.full((2,), t)
                for branch, (_, conditioning) in inputs.items():
                    joint = tensor_of(both(x, level, branch=branch, **conditioning))
                    assert torch.equal(joint, tensor_of(separate[branch](x, level, branch=branch, **conditioning)))
                x = x * (1 - 0.2 / STEPS)

    holds()


@pairs
def test_runs_do_not_see_each_other_for_every_pair(name, policy, substitute):
    """Stopped anywhere and started again equals a fresh wrapper: no history outlives its run."""
    s = subject(name)

    @few_on(name)
    @given(few, st.integers(1, STEPS - 1))
    def holds(seed, stop):
        used, fresh = (paired(name, policy, substitute) for _ in range(2))
        timesteps = s.scheduler.timesteps(STEPS)

        def loop(denoiser, seed, until=None):
            z, conditioning = s.inputs(2, seed)
            with denoiser.run(timesteps=timesteps):
                for t in timesteps[:until]:
                    z = z - 0.01 * tensor_of(denoiser(z, torch.full((2,), t), **conditioning))
            return z

        with torch.no_grad():
            loop(used, seed + 1, stop)
            assert torch.equal(loop(used, seed), loop(fresh, seed))
        assert used.trace.to_dict()["records"] == fresh.trace.to_dict()["records"]

    holds()


@settings(max_examples=30)
@given(seeds, st.floats(0.05, 1.0), reuses, st.integers(2, 4))
def test_tiling_a_latent_changes_no_decision(seed, epsilon, max_reuse, tiles):
    """RMS units: a tolerance means the same at every resolution."""
    s = subject("mixture")

    def tiled_model(x, t):
        return mixture()(x[..., : SHAPE[-1]], t).repeat(1, 1, 1, x.shape[-1] // SHAPE[-1])

    plain = cached(s, Counted(tiled_model), epsilon=epsilon, max_reuse=max_reuse)
    tiled = cached(s, Counted(tiled_model), epsilon=epsilon, max_reuse=max_reuse)
    x, _ = s.inputs(2, seed)
    y = sample(plain, s.scheduler, x, num_steps=20)
    z = sample(tiled, s.scheduler, x.repeat(1, 1, 1, tiles), num_steps=20)
    scores = [v for r in plain.trace.records for v in r.score or ()]
    assume(min(abs(v - epsilon) for v in scores) > 1e-5 * epsilon)
    assert [r.evaluated for r in plain.trace.records] == [r.evaluated for r in tiled.trace.records]
    torch.testing.assert_close(y.repeat(1, 1, 1, tiles), z)


def test_a_linear_denoiser_needs_no_first_order_caveat():
    """K = 1: the velocity is linear in x, so alpha_x is exact for any displacement."""
    single = GaussianMixtureDenoiser(
        means=torch.zeros(1, *SHAPE),
        variances=torch.tensor([0.3]),
        weights=torch.ones(1),
        schedule=FlowMatching(1000.0),
        prediction="velocity",
    )
    samples = CalibrationSamples.from_seeds(range(3), SHAPE)
    profile = calibrate(single, FlowEuler(), samples, num_steps=20, progress=False)
    x = torch.randn(1, *SHAPE, dtype=torch.float64)
    for t in profile.timesteps[1:]:
        exact = row_rms(single(3.0 * x, t) - single(x, t)) / row_rms(2.0 * x)
        assert profile.curves["alpha_x"].at(t) == pytest.approx(exact.item(), rel=1e-3)

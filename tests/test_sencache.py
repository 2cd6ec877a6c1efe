"""SenCache's rule: score, tolerance, streak and budget, against the rule written out, and what set-up does for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies import (
    CachedDenoiser,
    CachePolicy,
    EngineReason,
    NeedsError,
    PolicySettings,
    Score,
    SettingsError,
    Setup,
    UnknownNameError,
    enable,
    row_rms,
    sample,
)
from cachepolicies.policies import SenCache
from cachepolicies.policies.limits import LimitedPolicy, LimitReason
from cachepolicies.policies.sencache import PredictedChange
from cachepolicies.profiles.schema import Curve, SchedulerInfo
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.substitutes import Hold, Linear
from counting import out_of_sight
from denoisers import SHAPE, Counted, mixture
from made_profiles import linear_profile
from tiny_pipelines import PIPELINES

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

TIMESTEPS = FlowEuler().timesteps(20)
SPENT = LimitReason.SPENT


def noise(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run(denoiser, rows=3, seed=0, steps=20) -> Tensor:
    return sample(denoiser, "flow-euler", noise(rows, seed), num_steps=steps)


def make(profile, **settings) -> CachedDenoiser:
    options = {name: settings.pop(name) for name in ("substitute", "scheduler") if name in settings}
    return CachedDenoiser(Counted(mixture()), "sencache", profile=profile, **options, **settings)


# -- the rule ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.integers(0, 2**16),
    st.floats(0.01, 1.0),
    st.integers(0, 4),
    st.sampled_from(["linear", "nearest"]),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_decisions_are_those_of_the_rule_written_out(mixture_profile, seed, epsilon, max_reuse, interpolation, max_nfe):
    """Score and tolerance bit for bit; with the budget on top."""
    denoiser = make(mixture_profile, epsilon=epsilon, max_reuse=max_reuse, interpolation=interpolation, max_nfe=max_nfe)
    curves = mixture_profile.curves
    rows = 2
    reference: list[tuple[Tensor, float] | None] = [None] * rows
    x, streak, spent = noise(rows, seed), [0] * rows, [0] * rows
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        for k, t in enumerate(TIMESTEPS):
            y = denoiser(x, t)
            record = trace.records[-1]
            limit = min(0.01, epsilon) if k < 4 else epsilon
            for row in range(rows):
                reuse, held = False, reference[row]
                if held is not None:
                    there, r = held
                    alpha_x, alpha_t = (curves[name].at(r, interpolation) for name in ("alpha_x", "alpha_t"))
                    score = alpha_x * row_rms(x - there)[row].item() + alpha_t * abs(t - r)
                    over = max_nfe is not None and spent[row] >= max_nfe
                    reuse = over or (score <= limit and streak[row] < max_reuse)
                    if record.score is not None:
                        assert record.score[row] == score
                        assert record.tolerance[row] == limit
                    assert (record.reason[row] == SPENT) == over
                assert record.evaluated[row] is not reuse
                streak[row] = streak[row] + 1 if reuse else 0
                if not reuse:
                    spent[row] += 1
                    reference[row] = (x.clone(), t)
            x = x - 0.05 * y
    assert max_nfe is None or max(spent) <= max_nfe


# -- the budget --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(1, 20), st.floats(0.0, 0.5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2**16))
def test_no_sample_exceeds_its_budget(mixture_profile, max_nfe, epsilon, max_reuse, protect_last, seed):
    denoiser = make(mixture_profile, epsilon=epsilon, max_reuse=max_reuse, max_nfe=max_nfe, protect_last=protect_last)
    run(denoiser, seed=seed)
    evaluated = np.array([record.evaluated for record in denoiser.trace.records]).sum(axis=0)
    assert evaluated.max() <= max_nfe


def test_a_budget_that_is_not_reached_changes_nothing(mixture_profile):
    free, bound = (make(mixture_profile, epsilon=0.3, epsilon_start=0.3, max_nfe=n) for n in (None, 20))
    assert torch.equal(run(free), run(bound))
    assert free.trace.to_dict()["records"] == bound.trace.to_dict()["records"]


def test_branches_at_one_level_count_once(mixture_profile):
    denoiser = make(mixture_profile, epsilon=0.0, max_nfe=4)
    x = noise()
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        for t in TIMESTEPS:
            for branch in ("cond", "uncond"):
                denoiser(x, t, branch=branch)
    for branch in ("cond", "uncond"):
        evaluated = [record.evaluated for record in trace.records if record.branch == branch]
        assert evaluated == [(True,) * 3] * 4 + [(False,) * 3] * 16


def test_a_new_run_has_a_new_budget(mixture_profile):
    denoiser = make(mixture_profile, epsilon=0.0, max_nfe=4)
    for _ in range(2):
        run(denoiser)
        assert denoiser.nfe == 4


def test_the_engine_s_guard_goes_before_the_budget(mixture_profile):
    def model(x, t):
        return x * (float("nan") if t[0] == TIMESTEPS[2] else 0.5)

    denoiser = CachedDenoiser(Counted(model), "sencache", profile=mixture_profile, epsilon=0.0, max_nfe=3)
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        for t in TIMESTEPS:
            denoiser(noise(), torch.full((3,), t))
    assert [record.evaluated[0] for record in trace.records] == [True] * 4 + [False] * 16
    assert trace.records[3].reason == (EngineReason.NON_FINITE_OUTPUT,) * 3
    assert trace.records[4].reason == (SPENT,) * 3


def test_no_tensor_is_read_once_the_budget_is_spent(mixture_profile, monkeypatch):
    out_of_sight(monkeypatch)
    denoiser = CachedDenoiser(
        Counted(lambda x, t: 0.5 * x), "sencache", profile=mixture_profile, epsilon=0.0, max_nfe=5
    )
    reads: list[str] = []
    whole = Tensor.tolist

    def tolist(self):
        reads.append("read")
        return whole(self)

    x, seen = noise(), []
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        monkeypatch.setattr(Tensor, "tolist", tolist)
        for t in TIMESTEPS:
            denoiser(x, t)
            seen.append(len(reads))
    assert np.diff(seen).tolist() == [1] * 4 + [0] * 15
    assert trace.records[5].score is None
    assert trace.records[5].reason == (SPENT,) * 3


# -- the score ---------------------------------------------------------------------------------------------------------


def scores(denoiser) -> np.ndarray:
    return np.array([record.score for record in denoiser.trace.records if record.score is not None])


def with_rho(profile, value: float):
    at = profile.curves["alpha_x"].t
    rho = Curve(at, np.full((len(at), profile.samples), value))
    return evolve(profile, curves={**profile.curves, "rho": rho})


@pytest.mark.parametrize(("rho", "smaller"), [(1.0, False), (0.0, True), (-0.5, True)])
def test_the_correlated_score_is_at_most_the_bound(mixture_profile, rho, smaller):
    """On the same trajectory: every step evaluated."""
    profile = with_rho(mixture_profile, rho)
    found = []
    for score in ("bound", "correlated"):
        denoiser = make(profile, epsilon=0.4, max_reuse=0, score=score, max_nfe=20)
        run(denoiser)
        found.append(scores(denoiser))
    bound, correlated = found
    assert bound.shape == correlated.shape == (19, 3)
    if smaller:
        assert (correlated < bound).all()
    else:
        np.testing.assert_allclose(correlated, bound, rtol=1e-12)


def test_the_score_follows_the_substitute(mixture_profile):
    """Held, the change; extrapolated, what the extrapolation is off by: in the same unit, and smaller."""
    hold, linear, bound = (
        make(mixture_profile, epsilon="constant:epsilon=0.2", substitute=substitute, score=score)
        for substitute, score in (("hold", "substitute"), ("linear", "substitute"), ("linear", "bound"))
    )
    for denoiser in (hold, linear, bound):
        run(denoiser)
        for record in denoiser.trace.records:
            if record.score is not None:
                reused = ~np.array(record.evaluated)
                assert (np.array(record.score)[reused] <= 0.2).all()
    assert linear.nfe < hold.nfe
    assert [r.score for r in bound.trace.records][:4] == [r.score for r in hold.trace.records][:4]
    assert bound.policy.needs.curves == {"alpha_x", "alpha_t"}
    assert linear.policy.needs.tables == {"change", "displacement"}


def test_the_score_predicts_what_the_audit_measures(mixture_profile):
    """In the mean over the reuses of a run the linear score is within a factor of 3 of the true error."""
    denoiser = CachedDenoiser(
        Counted(mixture()),
        "sencache:epsilon=constant:epsilon=0.1",
        profile=mixture_profile,
        substitute="linear",
        audit=1.0,
    )
    run(denoiser, rows=8, steps=50)
    predicted, true = [], []
    for record in denoiser.trace.records[5:]:
        if record.audit is not None:
            reused = ~np.array(record.evaluated)
            predicted += np.array(record.audit.predicted_error)[reused].tolist()
            true += np.array(record.audit.true_error)[reused].tolist()
    assert len(true) > 50
    assert 1 / 3 < np.mean(predicted) / np.mean(true) < 3


def test_history_is_kept_by_decision(mixture_profile, monkeypatch):
    """Rows that refresh at different steps have refreshes of their own, as many as the score looks at."""
    states = []
    observe = PredictedChange.observe

    def recording(self, step, decision, output, state):
        states.append((step.t, decision.reuse, observe(self, step, decision, output, state)))
        return states[-1][-1]

    monkeypatch.setattr(PredictedChange, "observe", recording)

    # calibration samples of very different sizes, so that the score goes by how far each row moves
    sizes = np.geomspace(0.1, 10.0, mixture_profile.samples)
    sizes /= sizes.mean()
    tables = {name: mixture_profile.tables[name] * sizes for name in ("change", "displacement")}
    profile = evolve(mixture_profile, tables={**mixture_profile.tables, **tables})
    policy = SenCache(epsilon="constant:epsilon=0.3", max_reuse=4)
    run(CachedDenoiser(Counted(mixture()), policy, profile=profile, substitute="quadratic"), rows=6)
    own: list[list[float]] = [[] for _ in range(6)]
    for t, reuse, state in states:
        for row, again in enumerate(reuse):
            if not again:
                own[row].insert(0, t)
            assert list(state.refreshes[row]) == own[row][:3]
    assert len({tuple(levels) for levels in own}) > 1


# -- set-up ------------------------------------------------------------------------------------------------------------


def test_what_a_profile_lacks_is_said_at_set_up():
    profile = linear_profile(TIMESTEPS)
    with pytest.raises(NeedsError, match=r"substitute 'linear'.*'change'.*score=\"bound\" does with alpha_x"):
        make(profile, substitute="linear")
    make(profile, substitute="linear", score="bound")
    with pytest.raises(NeedsError, match=r"score='correlated' with substitute 'hold'.*'rho'"):
        make(profile, score="correlated")
    with pytest.raises(NeedsError, match="needs a profile with alpha_t, alpha_x, and none was given"):
        CachedDenoiser(mixture(), "sencache", substitute="linear", epsilon=0.1)


def score_in(policy: CachePolicy) -> Score:
    """Return the score of what `SenCache` resolves to."""
    assert isinstance(policy, LimitedPolicy)
    assert isinstance(policy.policy, PredictedChange)
    return policy.policy.score


def test_resolving_makes_another_object_and_leaves_the_settings(mixture_profile):
    policy = SenCache(epsilon=0.2)
    shown = repr(policy)
    setup = Setup(mixture_profile, Hold())
    resolved = policy.resolve(setup)
    assert policy == SenCache(epsilon=0.2)
    assert repr(policy) == shown
    assert not isinstance(policy, CachePolicy)
    assert resolved.resolve(setup) is resolved  # made once: an extrapolation's score takes a while
    assert score_in(resolved).name == "bound"
    assert score_in(policy.resolve(Setup(mixture_profile, Linear()))).name == "extrapolation"
    denoiser = CachedDenoiser(Counted(mixture()), policy, profile=mixture_profile)
    assert denoiser.settings is policy
    assert isinstance(denoiser.policy, LimitedPolicy)
    assert isinstance(resolved, LimitedPolicy)
    assert denoiser.policy.limits == resolved.limits


def test_inside_another_policy_it_is_resolved_with_it(mixture_profile):
    """Whoever is laid around it passes the set-up on, and gets the same decisions."""

    class Around(CachePolicy):
        name = "around"

        def __init__(self, inner):
            self.inner = inner

        needs = property(lambda self: self.inner.needs)
        reuses = property(lambda self: self.inner.reuses)

        def start(self, run):
            return self.inner.start(run)

        def decide(self, step, state):
            return self.inner.decide(step, state)

        def observe(self, step, decision, output, state):
            return self.inner.observe(step, decision, output, state)

    class Inside(PolicySettings):
        name = "inside"
        inner = SenCache(epsilon=0.3)

        def resolve(self, setup):
            return Around(self.inner.resolve(setup))

    around = CachedDenoiser(Counted(mixture()), Inside(), profile=mixture_profile)
    plain = make(mixture_profile, epsilon=0.3)
    assert torch.equal(run(around), run(plain))
    assert plain.cache_ratio > 0


class Asks(CachePolicy):
    """A policy that keeps what set-up tells it."""

    name = "asks"

    def __init__(self):
        self.setups: list[Setup] = []

    def resolve(self, setup):
        self.setups.append(setup)
        return self

    def decide(self, step, state):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [
        (None, None, None),
        (SchedulerInfo("flow-euler", "flow", {"shift": 3.0}), None, FlowEuler(shift=3.0)),
        (SchedulerInfo("flow-euler", "flow", {"shift": 3.0}), "flow-euler:shift=2", FlowEuler(shift=2)),
        (SchedulerInfo("somebody's", "flow"), None, None),
        (None, "flow-euler", FlowEuler()),
    ],
)
def test_the_scheduler_in_use(recorded, given, expected):
    policy = Asks()
    profile = None if recorded is None else evolve(linear_profile(TIMESTEPS), scheduler=recorded)
    CachedDenoiser(Counted(mixture()), policy, profile=profile, scheduler=given)
    [setup] = policy.setups
    assert setup.scheduler == expected
    assert setup.substitute == Hold()


def test_the_substitute_is_told_the_scheduler(mixture_profile):
    policy = Asks()
    denoiser = CachedDenoiser(
        Counted(mixture()), policy, profile=mixture_profile, substitute="linear", scheduler="flow-euler:shift=2"
    )
    [setup] = policy.setups
    assert setup.substitute is denoiser.substitute
    assert isinstance(denoiser.substitute, Linear)
    assert denoiser.substitute.time(500.0) == pytest.approx(0.5)  # sigma, the time of the sampler
    rebuilt = CachedDenoiser(Counted(mixture()), Asks(), profile=mixture_profile, substitute="linear")
    assert isinstance(rebuilt.substitute, Linear)
    assert rebuilt.substitute.time(500.0) == pytest.approx(0.5)  # from the profile's record
    unknown = CachedDenoiser(mixture(), "uniform:every=2", substitute="linear")
    assert isinstance(unknown.substitute, Linear)
    assert unknown.substitute.time(500.0) == 500.0
    with unknown.run(timesteps=TIMESTEPS) as trace:
        unknown(noise(), TIMESTEPS[0])
    assert any("no scheduler is known" in note for note in trace.notes)


@pytest.mark.parametrize("supported", [True, False])
def test_in_place_it_is_the_pipeline_s(supported):
    """One of a class that is not known is none, rather than an error: a pipeline runs on any."""
    pipe = PIPELINES["wan"].build()
    kind = type(pipe.scheduler)
    if not supported:
        pipe.scheduler.__class__ = type("Somebodys", (kind,), {})
    policy = Asks()
    with enable(pipe, policy):
        [setup] = policy.setups
        used = None if setup.scheduler is None else setup.scheduler.name
        assert used == (kind.__name__ if supported else None)
    asked = Asks()
    with enable(pipe.transformer, asked, substitute="linear"):
        assert asked.setups[0].scheduler is None


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_nfe": 0}, "max_nfe must be an integer >= 1, got 0"),
        ({"max_nfe": 3.0}, "max_nfe must be an integer >= 1"),
        ({"score": 1}, "score is 1 .*a registered name or a score"),
        ({"epsilon": ""}, "epsilon must be a finite number >= 0, got ''"),
        ({"epsilon": "0.1"}, "epsilon must be a finite number >= 0, got '0.1'"),
        ({"epsilon": [0.1]}, "a tolerance is a number >= 0"),
        ({"epsilon_start": -1.0}, "epsilon_start must be a finite number >= 0"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(SettingsError, match=message):
        SenCache(**given)


def test_a_score_that_nobody_registered_is_refused():
    with pytest.raises(UnknownNameError, match=r"unknown score 'sharp': .*bound, correlated, substitute"):
        SenCache(score="sharp")


def test_reuses():
    def resolved(**settings):
        return SenCache(**settings).resolve(Setup(linear_profile(TIMESTEPS), Hold()))

    assert resolved().reuses
    assert not resolved(epsilon=0).reuses
    assert not resolved(max_reuse=0).reuses
    assert resolved(epsilon=0, max_nfe=3).reuses
    assert resolved(epsilon="two-phase").reuses


@pytest.mark.parametrize(("preset", "share"), [("paper", 0.1), ("paper-fast", 0.05), ("constant", 1.0)])
def test_a_solved_tolerance_keeps_the_proportion_of_its_presets_start(preset, share):
    solved = SenCache(preset=preset).with_knob(0.4)
    assert solved.preset is None
    assert (solved.epsilon, solved.epsilon_start) == (0.4, pytest.approx(0.4 * share))
    plain = SenCache(epsilon=0.1, epsilon_start=0.03).with_knob(0.4)
    assert (plain.epsilon, plain.epsilon_start) == (0.4, 0.03)

"""TeaCache: the published rule on signals whose relative change is known, and the authors' recorded decisions."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from cachepolicies import CachePolicy, Limits, PolicySettings, Setup
from cachepolicies.base.errors import InputError, NeedsError, ProfileError, SettingsError
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies import TeaCache
from cachepolicies.policies.limits import LimitedPolicy
from cachepolicies.policies.teacache import AccumulatedChange
from cachepolicies.profiles.schema import ModelInfo, Polynomial, PublishedProfile
from cachepolicies.registry.load import load_plugins

# what the authors' LTX script accumulated on a tiny model, 0 where it evaluated: golden/teacache_ltx_a.json
LTX_COEFFICIENTS = (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326)
# fmt: off
LTX_ACCUMULATED = [
    0.0, 0.03558146302972739, 0.08351717938234038, 0.0, 0.047458665973623124, 0.0, 0.04419295418265278,
    0.08457000739156431, 0.0, 0.05285056227348576, 0.0, 0.043248454238590806, 0.0879815024005044, 0.0,
    0.05542707182315479, 0.0950861820518767, 0.0, 0.052120360662518024, 0.0, 0.041093030295660006, 0.08672712808808461,
    0.0, 0.05012233305378562, 0.0, 0.05220870079189237, 0.0, 0.053241613337820556, 0.0, 0.05811398147932152, 0.0,
]
# fmt: on
IDENTITY = (1.0, 0.0)
SIGNAL = "modulated_input"


def info_of(steps, rows=1, copies=1, per_sample=True, declared=True):
    timesteps = tuple(1000.0 * (1 - k / steps) for k in range(steps))
    layout = Layout(rows, copies, per_sample)
    return RunInfo(1000.0, timesteps if declared else None, layout, (rows, 2), torch.float32, torch.device("cpu"), None)


class Reader:
    """Reads tensors, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, tensors):
        self.calls += 1
        return [tensor.tolist() for tensor in tensors]


def rule_state(state):
    """The rule's own state, within the limits' or without them."""
    return getattr(state, "inner", state)


def drive(policy, info, signals, refuse=(), name=SIGNAL):
    """Follow a run with these signals; ``refuse``: (step, decision) that a guard evaluates."""
    state, read, decisions = policy.start(info), Reader(), []
    for k, signal in enumerate(signals):
        t = 1000.0 * (1 - k / len(signals))
        step = Step(torch.zeros(info.shape), t, "x", info.index(t), info, read, {name: signal})
        now, given_signal = rule_state(state), signal.clone()
        before = copy.deepcopy(now)
        reads = read.calls
        decision = policy.decide(step, state)
        assert read.calls - reads <= 1
        again = policy.decide(step, state)
        assert (again.reuse, again.reason) == (decision.reuse, decision.reason)
        decision = attrs.evolve(decision, reuse=tuple(r and (k, d) not in refuse for d, r in enumerate(decision.reuse)))
        following = policy.observe(step, decision, step.x, state)
        assert before.accumulated == now.accumulated
        assert before.signal is None or torch.equal(before.signal, now.signal) or not now.signal.isfinite().all()
        assert torch.equal(signal, given_signal) or signal.isnan().any()
        decisions.append(decision)
        state = following
    return decisions


def growing(changes, shape=(1, 6, 4), dtype=torch.float64, seed=0):
    """Signals whose relative L1 change from step to step is exactly that, up to rounding."""
    signal = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
    signals = [signal]
    for change in changes:
        signal = signal * (1 + change)
        signals.append(signal)
    return [s.to(dtype) for s in signals]


def teacache(**changes):
    return TeaCache(**{"threshold": 0.1, "coefficients": IDENTITY, "signal": SIGNAL, **changes}).resolve(Setup())


def evaluated(decisions, d=0):
    return [k for k, decision in enumerate(decisions) if not decision.reuse[d]]


def profile_with(polynomials, **changes):
    fields = {
        "name": "p",
        "model": ModelInfo("Net"),
        "prediction_type": None,
        "latent_shape": None,
        "scheduler": None,
        "timesteps": (),
        "polynomials": {name: Polynomial(c) for name, c in polynomials.items()},
    }
    return PublishedProfile(**{**fields, **changes})


changes_of_a_run = st.lists(st.floats(0.0, 0.5), min_size=2, max_size=30)


def test_the_authors_accumulated_distances_and_decisions_on_ltx():
    """Signals made so that their estimated changes are the recorded ones, and beyond the threshold elsewhere."""
    polynomial = np.poly1d(LTX_COEFFICIENTS)
    changes = []
    for before, here in pairwise(LTX_ACCUMULATED):
        wanted = here - before if here else 0.15 - before
        changes.append(brentq(lambda x, wanted=wanted: polynomial(x) - wanted, 0.0, 0.25))
    policy = teacache(threshold=0.1, coefficients=LTX_COEFFICIENTS)
    decisions = drive(policy, info_of(30, rows=2, per_sample=False), growing(changes, (2, 6, 4)))
    assert evaluated(decisions) == [k for k, value in enumerate(LTX_ACCUMULATED) if value == 0]
    for k, recorded in enumerate(LTX_ACCUMULATED):
        if recorded:
            assert decisions[k].score[0] == pytest.approx(recorded, rel=1e-9)
    assert decisions[0].reason == ("nothing to reuse",)
    assert decisions[-1].reason == ("protected last step",)
    assert decisions[3].tolerance == (0.1,)


@given(changes_of_a_run, st.floats(0.01, 1.0), st.sampled_from(["<", "<="]))
def test_the_rule_written_out(changes, threshold, comparison):
    decisions = drive(teacache(threshold=threshold, comparison=comparison), info_of(len(changes) + 1), growing(changes))
    expected, total = [0], 0.0
    for k, change in enumerate(changes[:-1], start=1):
        total += change
        if math.isclose(total, threshold, rel_tol=1e-9):
            return  # rounding decides
        if total > threshold:
            expected.append(k)
            total = 0.0
    assert evaluated(decisions) == [*expected, len(changes)]


def test_reaching_the_threshold():
    signals = [torch.full((1, 4), v, dtype=torch.float64) for v in (1.0, 1.5, 1.5)]
    for comparison, reused in (("<", False), ("<=", True)):
        policy = teacache(threshold=0.5, comparison=comparison, last=0)
        assert drive(policy, info_of(3), signals)[1].reuse == (reused,)


@given(changes_of_a_run, st.sampled_from(["<", "<="]))
def test_a_threshold_of_zero_never_reuses(changes, comparison):
    policy = teacache(threshold=0.0, comparison=comparison, last=0, coefficients=(1.0, -3.0))
    assert not policy.reuses
    assert len(evaluated(drive(policy, info_of(len(changes) + 1), growing(changes)))) == len(changes) + 1


@given(st.lists(changes_of_a_run, min_size=3, max_size=3), st.data())
def test_samples_decide_apart(changes, data):
    """A batch decides as its samples alone, also where a guard evaluates one of them."""
    steps = min(map(len, changes)) + 1
    samples = [growing(c[: steps - 1], seed=i) for i, c in enumerate(changes)]
    refused = data.draw(st.sets(st.tuples(st.integers(0, steps - 1), st.integers(0, 2))))
    batch = [torch.cat(rows) for rows in zip(*samples, strict=True)]
    together = drive(teacache(), info_of(steps, rows=3), batch, refused)
    for d in range(3):
        alone = drive(teacache(), info_of(steps), samples[d], {(k, 0) for k, sample in refused if sample == d})
        assert [step.reuse[d] for step in together] == [step.reuse[0] for step in alone]
        for one, other in zip(together, alone, strict=True):
            assert np.allclose(one.score[d] if one.score else 0, other.score[0] if other.score else 0, rtol=1e-12)


def test_rows_of_one_decision_are_pooled():
    """Sum of the changes over sum of the sizes: the mean over the whole batch, not the mean of the rows' ratios."""
    signals = [torch.tensor([[1.0, 1.0], [9.0, 9.0]]), torch.tensor([[2.0, 2.0], [9.0, 9.0]])]
    whole = drive(teacache(last=0, threshold=9.0), info_of(2, rows=2, per_sample=False), signals)
    assert whole[1].score == pytest.approx((2 / 20,))
    halves = drive(teacache(last=0, threshold=9.0), info_of(2, rows=2, copies=2), signals)
    assert halves[1].score == pytest.approx((2 / 20,))
    apart = drive(teacache(last=0, threshold=9.0), info_of(2, rows=2), signals)
    assert apart[1].score == pytest.approx((1.0, 0.0))


def test_the_step_before_counts_even_if_it_was_reused():
    signals = [torch.full((1, 4), v, dtype=torch.float64) for v in (1.0, 2.0, 1.0, 2.0)]
    decisions = drive(teacache(threshold=9.0, last=0), info_of(4), signals)
    assert [d.score and d.score[0] for d in decisions] == [None, 1.0, 1.5, 2.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_are_in_float32_at_least(dtype):
    """The sum of this signal is far beyond float16's largest number, and the change below bfloat16's resolution."""
    size = 70_000
    signals = [torch.full((1, size), v, dtype=dtype) for v in (2.0, 2.015625)]
    decisions = drive(teacache(threshold=9.0, last=0), info_of(2), signals)
    assert decisions[1].score[0] == pytest.approx(0.0078125, rel=1e-5)


def test_one_read_a_decision_and_none_where_nothing_is_to_decide():
    info, read = info_of(5), Reader()
    policy = teacache(first=2, last=1)
    state, reads = policy.start(info), []
    for k, signal in enumerate(growing([0.01] * 4)):
        step = Step(torch.zeros(1, 2), info.timesteps[k], "x", k, info, read, {SIGNAL: signal})
        before = read.calls
        decision = policy.decide(step, state)
        state = policy.observe(step, decision, step.x, state)
        reads.append(read.calls - before)
    assert reads == [0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(0, 0, [0]), (1, 0, [0]), (3, 0, [0, 1, 2]), (1, 2, [0, 4, 5]), (9, 9, [0, 1, 2, 3, 4, 5])],
)
def test_protected_steps(first, last, expected):
    policy = teacache(threshold=99.0, first=first, last=last)
    assert policy.needs.run_length == (first > 1 or last > 0)
    assert evaluated(drive(policy, info_of(6), growing([0.1] * 5))) == expected


def test_a_protected_step_starts_the_sum_again():
    decisions = drive(teacache(threshold=9.0, first=3, last=0), info_of(5), growing([0.1] * 4))
    assert decisions[3].score[0] == pytest.approx(0.1)
    assert decisions[4].score[0] == pytest.approx(0.2)


def test_without_a_declared_run_nothing_is_protected():
    policy = teacache(threshold=9.0, last=0)
    assert evaluated(drive(policy, info_of(4, declared=False), growing([0.1] * 3))) == [0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((0.0, 1.0), "last signal is zero"),
        ((0.0, 0.0), "last signal is zero"),
        ((1.0, math.nan), "change of the signal is not finite"),
        ((math.nan, 1.0), "change of the signal is not finite"),
        ((1.0, math.inf), "change of the signal is not finite"),
        ((math.inf, 1.0), "change of the signal is not finite"),
    ],
)
def test_what_cannot_be_compared_is_evaluated(values, reason):
    signals = [torch.full((1, 4), v) for v in (*values, 1.0, 1.0)]
    decisions = drive(teacache(last=0), info_of(4), signals)
    assert decisions[1].reuse == (False,)
    assert decisions[1].reason == (reason,)
    assert decisions[3].reuse == (True,)  # and the run recovers


def test_a_bad_row_does_not_spoil_the_others():
    signals = [torch.ones(2, 4), torch.tensor([[math.nan] * 4, [1.0] * 4])]
    assert drive(teacache(last=0), info_of(2, rows=2), signals)[1].reuse == (False, True)


@pytest.mark.parametrize("other", [torch.ones(1, 5), torch.ones(1, 4, dtype=torch.float64)])
def test_a_signal_of_another_shape_or_dtype_is_evaluated(other):
    decisions = drive(teacache(last=0), info_of(3), [torch.ones(1, 4), other, other])
    assert decisions[1].reason == ("signal changed its shape, dtype or device",)
    assert decisions[2].reuse == (True,)


def test_what_is_remembered_is_a_copy():
    info, signal = info_of(3), torch.ones(1, 4)
    policy = teacache(last=0)
    step = Step(torch.zeros(1, 2), 1000.0, "x", 0, info, Reader(), {SIGNAL: signal})
    state = policy.observe(step, policy.decide(step, policy.start(info)), step.x, policy.start(info))
    signal.zero_()
    assert torch.equal(rule_state(state).signal, torch.ones(1, 4))


def test_a_missing_signal_or_one_without_a_batch():
    with pytest.raises(NeedsError, match=r"needs the signal 'modulated_input' at every step, and got \['other'\]"):
        drive(teacache(), info_of(2), [torch.ones(1, 2)], name="other")
    with pytest.raises(InputError, match=r"has shape \(3, 2\) for a batch of 1; the first dimension must be the batch"):
        drive(teacache(), info_of(2), [torch.ones(3, 2)])


# -- set-up ----------------------------------------------------------------------------------------------------------


def test_open_settings_come_from_the_profile_and_given_ones_win():
    settings = {"teacache": {"threshold": 0.6, "signal": SIGNAL, "first": 5, "last": 0}}
    profile = profile_with({SIGNAL: (2.0, 1.0)}, settings=settings)
    setup = Setup(profile)
    policy = TeaCache()
    assert isinstance(policy, PolicySettings)
    assert not isinstance(policy, CachePolicy)  # settings that are open cannot start
    resolved = policy.resolve(setup)
    assert policy == TeaCache()
    assert resolved == LimitedPolicy(
        AccumulatedChange(0.6, (2.0, 1.0), SIGNAL, "<"), Limits(protect_first=5, protect_last=0)
    )
    assert resolved.resolve(setup) is resolved
    assert resolved.needs.signals == {SIGNAL}
    assert resolved.needs.run_length
    assert TeaCache(threshold=0.2, first=1, comparison="<=").resolve(setup) == LimitedPolicy(
        AccumulatedChange(0.2, (2.0, 1.0), SIGNAL, "<="), Limits(protect_first=1, protect_last=0)
    )


def test_the_only_polynomial_says_which_signal():
    resolved = TeaCache(threshold=0.2).resolve(Setup(profile_with({"timestep_embedding": (1.0, 0.0)})))
    assert resolved == LimitedPolicy(
        AccumulatedChange(0.2, (1.0, 0.0), "timestep_embedding", "<"), Limits(protect_first=1, protect_last=1)
    )


def test_coefficients_may_be_an_array():
    assert teacache(coefficients=np.array([1.0, 2.0])).policy.coefficients == (1.0, 2.0)
    assert hash(teacache(coefficients=[1, 2])) == hash(teacache(coefficients=(1, 2)))


TWO = profile_with(
    {SIGNAL: (2.0, 1.0), "timestep_embedding": (1.0, 0.0)}, settings={"teacache": {"threshold": 0.6, "signal": SIGNAL}}
)


@pytest.mark.parametrize(
    ("options", "profile", "message"),
    [
        ({}, None, r"lacks threshold, coefficients, signal \(no profile was given\); give it as threshold=..., or use"),
        ({"threshold": 0.1, "coefficients": (1, 0)}, None, r"lacks signal \(no profile"),
        ({}, profile_with({}), r"lacks threshold, coefficients, signal \(profile 'p' has polynomials for: none\)"),
        ({}, profile_with({SIGNAL: (1.0, 0.0)}), r"lacks threshold \(profile 'p' has polynomials for: modulated_input"),
        ({"threshold": 0.1, "signal": "timestep_projection"}, TWO, "lacks coefficients"),
        ({"signal": "timestep_embedding"}, TWO, "lacks threshold"),  # that of the profile is for another polynomial
        ({"coefficients": (1.0, 0.0)}, TWO, "lacks threshold"),
    ],
)
def test_what_is_missing_is_said_at_set_up(options, profile, message):
    with pytest.raises(NeedsError, match=message):
        TeaCache(**options).resolve(Setup(profile))


def test_bad_settings_of_a_profile():
    for settings, message in (
        ({"treshold": 1}, "profile 'p', settings of 'teacache': unknown setting 'treshold': did you mean 'threshold'"),
        ({"signal": ["x"]}, "settings of 'teacache': TeaCache: signal must be a name"),
        ({"first": 1.5}, "TeaCache: first must be an integer"),
    ):
        with pytest.raises(ProfileError, match=message):
            TeaCache().resolve(Setup(profile_with({SIGNAL: (1.0, 0.0)}, settings={"teacache": settings})))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1}, "threshold must be a finite number >= 0"),
        ({"threshold": True}, "threshold must be"),
        ({"coefficients": ()}, "coefficients must be a sequence of at least one finite number"),
        ({"coefficients": (1.0, math.nan)}, "entry 1 is not one, got nan"),
        ({"coefficients": ("1",)}, "entry 0 is not one"),
        ({"coefficients": 1.0}, "coefficients must be"),
        ({"coefficients": [[1.0]]}, "entry 0 is not one"),
        ({"signal": ""}, "signal must be a name"),
        ({"first": -1}, "first must be an integer >= 0"),
        ({"last": 0.5}, "last must be an integer >= 0"),
        ({"comparison": ">"}, "comparison must be"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(SettingsError, match=message):
        TeaCache(**options)


def test_it_is_registered():
    assert load_plugins().policies.create("teacache:threshold=0.1") == TeaCache(threshold=0.1)

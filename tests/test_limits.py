"""Limits around any policy: the rule written out, and what of the policy is left as it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, CachePolicy, Decision, Limited, Limits, Needs, Reason, SettingsError, Setup
from cachepolicies.policies import SenCache, Uniform
from cachepolicies.policies.limits import LimitedPolicy, LimitReason, within_limits

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

ROWS = 2


class Wish(Reason):
    REUSE = "reuse"
    EVALUATE = "evaluate"


class Wishes(CachePolicy):
    """Wants at every step what it was told, and notes where it was asked and what it observed."""

    name = "wishes"

    def __init__(self, wishes):
        self.wishes = wishes
        self.asked, self.observed = [], []

    def start(self, run):
        return 0

    def decide(self, step, state):
        self.asked.append(state)
        wanted = self.wishes[state]
        return Decision(wanted, tuple(Wish.REUSE if yes else Wish.EVALUATE for yes in wanted), (0.5,) * len(wanted))

    def observe(self, step, decision, output, state):
        self.observed.append(decision.reuse)
        return state + 1


def timesteps(count):
    return [1000.0 * (1 - k / count) for k in range(count)]


def walk(denoiser, count):
    with denoiser.run(timesteps=timesteps(count)) as run:
        for t in timesteps(count):
            denoiser(torch.ones(ROWS, 3), t)
    return run.trace


WHOLE = {"floor": math.floor, "half-up": lambda steps: math.floor(steps + 0.5), "ceil": math.ceil}

limits_of = st.builds(
    Limits,
    protect_first=st.integers(0, 4),
    protect_last=st.integers(0, 4),
    retention=st.floats(0, 1),
    rounding=st.sampled_from(sorted(WHOLE)),
    max_reuse=st.none() | st.integers(0, 4),
    max_nfe=st.none() | st.integers(1, 8),
)


@settings(max_examples=150)
@given(st.lists(st.tuples(*[st.booleans()] * ROWS), min_size=1, max_size=14), limits_of)
def test_the_rule_written_out(wishes, limits):
    count = len(wishes)
    policy = Wishes(wishes)
    trace = walk(CachedDenoiser(lambda x, t: x, policy, limits=limits), count)
    streak, spent, expected = [0] * ROWS, [0] * ROWS, []
    for k, wanted in enumerate(wishes):
        protected = (
            k < limits.protect_first
            or k >= count - limits.protect_last
            or k < WHOLE[limits.rounding](limits.retention * count)
        )
        reuse = []
        for row in range(ROWS):
            if k == 0:
                again = False  # nothing is remembered
            elif limits.max_nfe is not None and spent[row] >= limits.max_nfe:
                again = True
            elif protected or (limits.max_reuse is not None and streak[row] >= limits.max_reuse):
                again = False
            else:
                again = wanted[row]
            streak[row] = streak[row] + 1 if again else 0
            spent[row] += not again
            reuse.append(again)
        expected.append(tuple(reuse))
    assert [tuple(not done for done in record.evaluated) for record in trace.records] == expected
    if CachedDenoiser(lambda x, t: x, Wishes(wishes), limits=limits).policy.reuses:
        assert policy.observed == expected  # told of every step, also where it was not asked


def test_where_the_limits_say_it_all_the_policy_is_not_asked():
    policy = Wishes([(True,) * ROWS] * 8)
    limits = Limits(protect_first=2, protect_last=1, max_nfe=4, max_reuse=1)
    trace = walk(CachedDenoiser(lambda x, t: x, policy, limits=limits), 8)
    assert policy.asked == [0, 2, 3, 4, 5]
    assert [record.reason[0] for record in trace.records[1:]] == [
        LimitReason.FIRST, Wish.REUSE, LimitReason.STREAK, Wish.REUSE, LimitReason.STREAK, LimitReason.SPENT,
        LimitReason.SPENT,
    ]  # fmt: skip
    assert [record.score is not None for record in trace.records] == [True, False, True, True, True, True, False, False]


def test_the_first_part_of_an_undeclared_run_is_measured_in_t():
    denoiser = CachedDenoiser(lambda x, t: x, Wishes([(True,) * ROWS] * 10), limits=Limits(retention=0.3))
    for t in timesteps(10):
        denoiser(torch.ones(ROWS, 3), t)
    assert [all(record.evaluated) for record in denoiser.trace.records] == [True] * 3 + [False] * 7


def test_without_limits_the_policy_is_itself():
    policy = Uniform(every=2)
    assert within_limits(policy, Limits()) is policy
    assert CachedDenoiser(lambda x, t: x, policy, limits=Limits()).policy is policy


def test_what_is_needed_and_whether_it_reuses():
    policy, never = Wishes([]), Uniform(every=1)
    assert LimitedPolicy(policy, Limits(protect_first=1)).needs == Needs()  # the first step is evaluated anyway
    assert LimitedPolicy(policy, Limits(protect_first=2)).needs == Needs(run_length=True)
    assert LimitedPolicy(policy, Limits(protect_last=1)).needs == Needs(run_length=True)
    assert LimitedPolicy(policy, Limits(max_reuse=3)).reuses
    assert not LimitedPolicy(policy, Limits(max_reuse=0)).reuses
    assert not LimitedPolicy(never, Limits(max_reuse=3)).reuses
    assert LimitedPolicy(never, Limits(max_nfe=3)).reuses
    assert LimitedPolicy(policy, Limits(max_reuse=0, max_nfe=3)).reuses


def test_limits_may_be_part_of_the_settings():
    settings = Limited(Uniform(every=5), Limits(max_reuse=2))
    assert settings.name == "uniform"
    assert settings.resolve(Setup()) == LimitedPolicy(Uniform(every=5), Limits(max_reuse=2))
    one = walk(CachedDenoiser(lambda x, t: x, settings), 10)
    other = walk(CachedDenoiser(lambda x, t: x, "uniform:every=5", limits=Limits(max_reuse=2)), 10)
    assert [r.evaluated for r in one.records] == [r.evaluated for r in other.records]
    assert [r.index for r in one.records if all(r.evaluated)] == [0, 3, 5, 8]


def test_those_of_the_policy_and_those_given_beside_it_both_hold(mixture_profile):
    denoiser = CachedDenoiser(
        lambda x, t: x,
        SenCache(epsilon="constant:epsilon=99.0", max_reuse=4),
        profile=mixture_profile,
        limits=Limits(protect_last=2),
    )
    trace = walk(denoiser, 12)
    assert [r.index for r in trace.records if all(r.evaluated)] == [0, 5, 10, 11]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"protect_first": -1}, "protect_first must be an integer >= 0"),
        ({"protect_last": 1.5}, "protect_last must be an integer >= 0"),
        ({"retention": 1.5}, "retention must be a fraction"),
        ({"rounding": "up"}, "rounding must be one of"),
        ({"max_reuse": -1}, "max_reuse must be an integer >= 0"),
        ({"max_nfe": 0}, "max_nfe must be an integer >= 1"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(SettingsError, match=message):
        Limits(**given)

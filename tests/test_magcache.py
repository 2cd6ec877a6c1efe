"""MagCache: the published rule, its lookups, and the authors' recorded decisions."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, CachePolicy, Limits, PolicySettings, Setup
from cachepolicies.base.errors import NeedsError, ProfileError, SettingsError
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies import MagCache
from cachepolicies.policies.limits import LimitedPolicy
from cachepolicies.policies.magcache import AccumulatedDrift
from cachepolicies.profiles.schema import ModelInfo, PublishedProfile
from cachepolicies.registry.load import load_plugins

# decisions of the authors' FLUX script on a tiny model: golden/magcache_flux_a.json
# fmt: off
FLUX = [
    1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562,
    1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359,
    0.89062,
]
# fmt: on
FLUX_EVALUATED = [0, 1, 2, 5, 9, 11, 17, 23, 26]
FLUX_SETTINGS: dict[str, Any] = {
    "threshold": 0.24,
    "max_reuse": 5,
    "retention_ratio": 0.1,
    "never": [11],
    "lookup": "index",
    "comparison": "<=",
    "retention_rounding": "half-up",
}


def never_read(tensors):
    raise AssertionError("magcache reads no tensor")


def run_info(steps, timesteps=None, decisions=1, profile=None, declared=True):
    timesteps = tuple(timesteps or (1000.0 * (1 - k / steps) for k in range(steps)))
    return RunInfo(
        timesteps[0], timesteps if declared else None, Layout(decisions), (decisions, 2), torch.float32,
        torch.device("cpu"), profile,
    )  # fmt: skip


def step_at(info, t, branch="x"):
    return Step(torch.zeros(info.shape), t, branch, info.index(t), info, never_read)


def drive(policy, info, visited=None, branch="x", refuse=()):
    """Follow a run; returns the decisions as carried out. ``refuse``: (call, decision) that a guard evaluates."""
    state = policy.start(info)
    decisions = []
    for call, t in enumerate(info.timesteps if visited is None else visited):
        step = step_at(info, t, branch)
        before = copy.deepcopy(attrs.asdict(state))
        decision = policy.decide(step, state)
        assert decision == policy.decide(step, state)
        reuse = tuple(r and (call, d) not in refuse for d, r in enumerate(decision.reuse))
        decision = attrs.evolve(decision, reuse=reuse)
        following = policy.observe(step, decision, step.x, state)
        assert attrs.asdict(state) == before
        decisions.append(decision)
        state = following
    return decisions


def evaluated(decisions, d=0):
    return [k for k, decision in enumerate(decisions) if not decision.reuse[d]]


def rule_and_limits(policy: CachePolicy) -> tuple[AccumulatedDrift, Limits]:
    """Return the two parts of what `MagCache` resolves to."""
    assert isinstance(policy, LimitedPolicy)
    assert isinstance(policy.policy, AccumulatedDrift)
    return policy.policy, policy.limits


def measured(ratios, timesteps=None, **changes):
    tables = {f"magnitude_ratio{'.' if stream else ''}{stream}": np.array(r, float) for stream, r in ratios.items()}
    tables = {name: table.reshape(len(table), -1) for name, table in tables.items()}
    steps = len(next(iter(tables.values())))
    fields = {
        "name": "p",
        "model": ModelInfo("Net"),
        "prediction_type": None,
        "latent_shape": None,
        "scheduler": None,
        "timesteps": tuple(timesteps or (1000.0 * (1 - k / steps) for k in range(steps))),
        "samples": next(iter(tables.values())).shape[1],
        "tables": tables,
    }
    return PublishedProfile(**{**fields, **changes})


ratio_lists = st.lists(st.floats(0.5, 1.6), min_size=1, max_size=30).map(lambda r: [1.0, *r])
settings_of_a_run = st.fixed_dictionaries(
    {
        "threshold": st.floats(0.01, 2.0),
        "max_reuse": st.integers(1, 6),
        "retention_ratio": st.floats(0, 0.6),
        "comparison": st.sampled_from(["<=", "<"]),
        "retention_rounding": st.sampled_from(["floor", "half-up", "ceil"]),
    }
)


def test_the_authors_decisions_on_flux():
    policy = MagCache(ratios=FLUX, **FLUX_SETTINGS).resolve(Setup())
    decisions = drive(policy, run_info(28))
    assert evaluated(decisions) == FLUX_EVALUATED
    assert {decisions[11].reason, decisions[2].reason} == {
        ("position that is always evaluated",),
        ("first part of the run",),
    }
    assert decisions[0].reason == ("nothing to reuse",)


def test_without_the_odd_position_the_run_goes_on():
    policy = MagCache(ratios=FLUX, **{**FLUX_SETTINGS, "never": ()}).resolve(Setup())
    assert evaluated(drive(policy, run_info(28)))[:5] == [0, 1, 2, 5, 9]
    assert 11 not in evaluated(drive(policy, run_info(28)))


@given(ratio_lists, settings_of_a_run, st.integers(1, 40), st.booleans())
def test_the_rule_written_out(ratios, options, steps, by_level):
    """Against a plain loop over the steps: the accumulated error, the streak and the retention."""
    steps = len(ratios) if by_level else steps
    profile = measured({"": ratios}) if by_level else None
    options = options | {"lookup": "level" if by_level else "index"}
    policy = MagCache(ratios=None if by_level else ratios, **options).resolve(Setup(profile))
    share = options["retention_ratio"] * steps
    first = {"floor": math.floor, "ceil": math.ceil, "half-up": lambda v: math.floor(v + 0.5)}
    expected, product, error, streak = [], 1.0, 0.0, 0
    for k in range(steps):
        if k == 0 or k < first[options["retention_rounding"]](share):
            expected.append(k)
            continue
        entry = int(np.round(k * (len(ratios) - 1) / (steps - 1)))
        product *= ratios[entry]
        error += abs(1 - product)
        streak += 1
        near = math.isclose(error, options["threshold"], rel_tol=1e-9)
        ok = error <= options["threshold"] if options["comparison"] == "<=" else error < options["threshold"]
        if near or not ok or streak > options["max_reuse"]:
            expected.append(k)
            product, error, streak = 1.0, 0.0, 0
    decisions = drive(policy, run_info(steps, profile=profile))
    scores = [d.score[0] for d in decisions if d.score]
    if not any(math.isclose(s, options["threshold"], rel_tol=1e-9) for s in scores):
        assert evaluated(decisions) == expected


@given(ratio_lists, settings_of_a_run)
def test_never_more_than_max_reuse_in_a_row(ratios, options):
    policy = MagCache(ratios=ratios, lookup="index", **options).resolve(Setup())
    gaps = [b - a - 1 for a, b in pairwise([*evaluated(drive(policy, run_info(40))), 40])]
    assert max(gaps) <= options["max_reuse"]


@given(ratio_lists, st.integers(1, 40), st.sampled_from(["<=", "<"]))
def test_a_threshold_or_a_number_of_zero_never_reuses(ratios, steps, comparison):
    for zero in ({"threshold": 0.0}, {"max_reuse": 0}):
        policy = MagCache(ratios=ratios, comparison=comparison, retention_ratio=0.0, **zero).resolve(Setup())
        assert not policy.reuses
        assert evaluated(drive(policy, run_info(steps))) == list(range(steps))


@given(ratio_lists, settings_of_a_run, st.data())
def test_samples_decide_apart(ratios, options, data):
    """A guard that evaluates one sample changes nothing for the others: each is as if it were alone."""
    steps = 20
    policy = MagCache(ratios=ratios, lookup="index", **options).resolve(Setup())
    refused = data.draw(st.sets(st.tuples(st.integers(0, steps - 1), st.integers(0, 2))))
    together = drive(policy, run_info(steps, decisions=3), refuse=refused)
    for d in range(3):
        alone = drive(policy, run_info(steps), refuse={(k, 0) for k, sample in refused if sample == d})
        assert [step.reuse[d] for step in together] == [step.reuse[0] for step in alone]
        assert [step.score and step.score[d] for step in together] == [step.score and step.score[0] for step in alone]


def test_what_was_accumulated_starts_again_at_an_evaluation():
    policy = MagCache(threshold=0.25, max_reuse=9, retention_ratio=0.0, ratios=[1.0] + [1.1] * 9).resolve(Setup())
    decisions = drive(policy, run_info(10))
    assert evaluated(decisions) == [0, 2, 4, 6, 8]  # 0.1, then 0.1 + 0.21
    assert [round(d.score[0], 4) for d in decisions[1:]] == [0.1, 0.31] * 4 + [0.1]
    assert decisions[1].tolerance == (0.25,)


@pytest.mark.parametrize("lookup", ["index", "level"])
def test_a_second_evaluation_at_a_step_applies_no_ratio(lookup):
    """Heun evaluates twice at most t; the drift is that of the noise level, whatever the number of calls."""
    ratios = [1.0, 0.9, 0.8, 0.9, 0.7, 0.9]
    info = run_info(6, profile=measured({"": ratios}))
    policy = MagCache(threshold=9.0, max_reuse=99, retention_ratio=0.0, lookup=lookup).resolve(Setup(info.profile))
    once = drive(policy, info)
    twice = drive(policy, info, [t for t in info.timesteps for _ in range(2)])
    assert [d.score[0] for d in once[1:]] == pytest.approx([d.score[0] for d in twice[2::2]])
    assert [d.score[0] for d in twice[2::2]] == pytest.approx([d.score[0] for d in twice[3::2]])
    assert drive(policy, info, [1000.0, 1000.0])[1].reuse == (True,)  # nothing has moved
    assert isinstance(policy, LimitedPolicy)
    shorter = attrs.evolve(policy, limits=attrs.evolve(policy.limits, max_reuse=2))
    assert drive(shorter, info, [1000.0] * 5)[3].reason == ("max_reuse reached",)


@given(ratio_lists, st.data())
def test_several_steps_at_once_apply_the_product_of_all(ratios, data):
    steps = len(ratios)
    info = run_info(steps, profile=measured({"": ratios}))
    visited = [0, *sorted(data.draw(st.sets(st.integers(1, steps - 1), min_size=1)))]
    for lookup in ("index", "level"):
        policy = MagCache(threshold=1e9, max_reuse=99, retention_ratio=0.0, lookup=lookup).resolve(Setup(info.profile))
        decisions = drive(policy, info, [info.timesteps[k] for k in visited])
        error = 0.0
        for k, decision in zip(visited[1:], decisions[1:], strict=True):
            error += abs(1 - np.prod(ratios[1 : k + 1]))
            assert decision.score[0] == pytest.approx(error, rel=1e-9)


@given(ratio_lists, st.integers(2, 60))
def test_by_level_any_number_of_steps_multiplies_to_the_same(ratios, steps):
    profile = measured({"": ratios})
    policy = MagCache(threshold=1e9, max_reuse=999, retention_ratio=0.0).resolve(Setup(profile))
    assert rule_and_limits(policy)[0].lookup == "level"
    levels = np.linspace(profile.timesteps[0], profile.timesteps[-1], steps).tolist()
    info = run_info(steps, levels, profile=profile)
    state = policy.start(info)
    for t in levels:
        step = step_at(info, t)
        state = policy.observe(step, attrs.evolve(policy.decide(step, state), reuse=(True,)), step.x, state)
    assert state.inner.ratio[0] == pytest.approx(np.prod(ratios), rel=1e-6)


def test_by_level_beyond_the_table_nothing_drifts():
    profile = measured({"": [1.0, 2.0]}, (600.0, 400.0))
    policy = MagCache(threshold=9.0, max_reuse=9, retention_ratio=0.0).resolve(Setup(profile))
    info = run_info(4, (900.0, 700.0, 300.0, 100.0), profile=profile)
    assert [d.score and d.score[0] for d in drive(policy, info)] == [None, 0.0, 1.0, 2.0]


@pytest.mark.parametrize("length", [7, 28, 50])
def test_by_index_the_nearest_entry_as_numpy_rounds(length):
    policy = MagCache(ratios=FLUX, never=[11], threshold=1e9, max_reuse=99, retention_ratio=0.0).resolve(Setup())
    decisions = drive(policy, run_info(length))
    scaled = np.round(np.arange(length) * 27 / (length - 1)).astype(int)
    assert evaluated(decisions) == [0, *np.flatnonzero(scaled == 11)]
    assert decisions[1].score[0] == pytest.approx(abs(1 - FLUX[scaled[1]]))


def test_a_run_of_one_step():
    assert evaluated(drive(MagCache(ratios=FLUX).resolve(Setup()), run_info(1))) == [0]


@pytest.mark.parametrize(("rounding", "first"), [("floor", 2), ("half-up", 3), ("ceil", 3)])
def test_the_first_part_is_rounded_as_asked(rounding, first):
    policy = MagCache(ratios=[1.0] * 10, retention_ratio=0.25, retention_rounding=rounding, max_reuse=99)
    assert evaluated(drive(policy.resolve(Setup()), run_info(10))) == list(range(first))


def test_the_first_part_of_an_undeclared_run_is_measured_in_t():
    profile = measured({"": [1.0] * 10})
    policy = MagCache(retention_ratio=0.3, max_reuse=99).resolve(Setup(profile))
    assert not policy.needs.run_length
    info = run_info(10, profile=profile, declared=False)
    assert evaluated(drive(policy, info, profile.timesteps)) == [0, 1, 2]


def test_every_branch_has_its_own_stream():
    profile = measured({"cond": [1.0, 1.5, 1.5], "uncond": [1.0, 1.1, 1.1]})
    policy = MagCache(threshold=9.0, max_reuse=9, retention_ratio=0.0).resolve(Setup(profile))
    info = run_info(3, profile=profile)
    scores = {b: drive(policy, info, branch=b)[1].score[0] for b in ("cond", "uncond", "whole batch")}
    assert scores == pytest.approx({"cond": 0.5, "uncond": 0.1, "whole batch": 0.5})
    one = MagCache(ratios={"ref": [1.0, 1.2]}, retention_ratio=0.0, threshold=9.0).resolve(Setup())
    assert drive(one, run_info(2))[1].score[0] == pytest.approx(0.2)
    two = MagCache(ratios={"a": [1.0, 1.2], "b": [1.0, 1.2]}, retention_ratio=0.0).resolve(Setup())
    with pytest.raises(NeedsError, match="streams a, b, and none for branch 'x'"):
        drive(two, run_info(2))


def test_the_ratios_of_a_profile_are_averaged_over_the_samples():
    profile = measured({"": [[1.0, 1.0], [1.1, 1.3]]})
    policy = MagCache(retention_ratio=0.0, threshold=9.0).resolve(Setup(profile))
    assert drive(policy, run_info(2, profile=profile))[1].score[0] == pytest.approx(0.2)


# -- set-up ----------------------------------------------------------------------------------------------------------


def test_open_settings_come_from_the_profile_and_given_ones_win():
    profile = measured({"": FLUX}, settings={"magcache": FLUX_SETTINGS})
    policy = MagCache(max_reuse=2, comparison="<")
    assert isinstance(policy, PolicySettings)
    assert not isinstance(policy, CachePolicy)  # settings that are open cannot start
    setup = Setup(profile)
    resolved = policy.resolve(setup)
    assert policy == MagCache(max_reuse=2, comparison="<")
    rule, limits = rule_and_limits(resolved)
    assert (rule.threshold, rule.comparison, rule.never, rule.lookup) == (0.24, "<", (11,), "index")
    assert limits == Limits(max_reuse=2, retention=0.1, rounding="half-up")
    assert resolved.needs.run_length
    assert not resolved.needs.tables
    assert resolved.resolve(setup) is resolved
    assert policy.resolve(setup) == resolved
    assert hash(policy.resolve(setup)) == hash(resolved)


def test_ratios_that_are_given_leave_the_profiles_positions_alone():
    profile = measured({"": FLUX}, settings={"magcache": FLUX_SETTINGS})
    rule, _ = rule_and_limits(MagCache(ratios=np.ones(5)).resolve(Setup(profile)))
    assert (rule.never, rule.single, rule.lookup) == ((), (1.0,) * 5, "index")
    assert [curve.ratios for curve in rule.curves.values()] == [(1.0,) * 5]
    by_level, _ = rule_and_limits(MagCache(ratios=FLUX, lookup="level").resolve(Setup(profile)))
    assert by_level.lookup == "level"


def test_defaults_where_nobody_says_anything():
    rule, limits = rule_and_limits(MagCache().resolve(Setup(measured({"": FLUX}))))
    assert (rule.threshold, rule.lookup) == (0.06, "level")
    assert limits == Limits(max_reuse=3, retention=0.2, rounding="half-up")
    without_timesteps = attrs.evolve(measured({"": FLUX}), timesteps=(), stated_steps=28)
    rule, _ = rule_and_limits(MagCache().resolve(Setup(without_timesteps)))
    assert rule.lookup == "index"


@pytest.mark.parametrize(
    ("options", "profile", "error", "message"),
    [
        ({}, None, NeedsError, "needs magnitude ratios .no profile was given.*ratios=.*cachepolicies calibrate"),
        ({}, measured({"": [1.0]}, tables={}), NeedsError, "profile 'p' has none"),
        ({"ratios": [1.0, 2.0], "lookup": "level"}, None, NeedsError, "give lookup='index', or a profile"),
        (
            {"ratios": [1.0, 2.0], "lookup": "level"},
            measured({"": [1.0] * 3}),
            SettingsError,
            "2 entries for the profile's 3 timesteps",
        ),
        ({"ratios": [1.1, 2.0]}, None, SettingsError, "entry 0 is 1.1, expected 1.*put 1.0 in front"),
        ({"ratios": [1.0, 0.0]}, None, SettingsError, "entry 1 is 0.0; a ratio of sizes is finite and > 0"),
        ({"ratios": {"cond": [1.0, -1]}}, None, SettingsError, "stream 'cond': entry 1 is -1"),
        ({"ratios": [1.0, 1.0], "never": [2]}, None, SettingsError, "never holds 2, but the ratios have .* 0 to 1"),
        (
            {},
            measured({"": [1.0]}, settings={"magcache": {"treshold": 1}}),
            ProfileError,
            "profile 'p', settings of 'magcache': unknown setting 'treshold': did you mean 'threshold'",
        ),
        (
            {},
            measured({"": [1.0]}, settings={"magcache": {"threshold": -1}}),
            ProfileError,
            "settings of 'magcache': MagCache: threshold must be a finite number >= 0, got -1",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_said_at_set_up(options, profile, error, message):
    with pytest.raises(error, match=message):
        MagCache(**options).resolve(Setup(profile))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold must be a finite number >= 0"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"max_reuse": 1.5}, "max_reuse must be an integer"),
        ({"retention_ratio": 1.5}, "retention_ratio must be a fraction"),
        ({"ratios": []}, "ratios must be a sequence of at least one finite number"),
        ({"ratios": [1.0, float("inf")]}, "ratios must be .*entry 1"),
        ({"ratios": [1.0, "2"]}, "entry 1 is not one, got '2'"),
        ({"ratios": "1, 2"}, "ratios must be"),
        ({"ratios": {}}, "ratios must be .* or a mapping"),
        ({"ratios": {"cond": []}}, "ratios must be"),
        ({"ratios": 3}, "ratios must be"),
        ({"never": [-1]}, "never must be an integer >= 0"),
        ({"never": 11}, "never must be a sequence of integers"),
        ({"lookup": "time"}, "lookup must be one of a few words"),
        ({"comparison": "=="}, "comparison must be"),
        ({"retention_rounding": "up"}, "retention_rounding must be"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(SettingsError, match=message):
        MagCache(**options)


def test_two_streams_in_one_list_are_recognised():
    policy = MagCache(ratios=[1.0, 1.0, 0.9, 0.8, 0.7, 0.6]).resolve(Setup())
    with pytest.raises(SettingsError, match=r"6 entries for 3 steps .*\"cond\": ratios\[0::2\]"):
        policy.start(run_info(3))
    policy.start(run_info(6))


def test_it_is_registered():
    assert load_plugins().policies.create("magcache:threshold=0.1") == MagCache(threshold=0.1)


def test_engine_uses_it():
    denoiser = CachedDenoiser(lambda x, t: x, MagCache(ratios=FLUX, **FLUX_SETTINGS))
    info = run_info(28)
    with denoiser.run(timesteps=info.timesteps) as trace:
        for t in info.timesteps:
            denoiser(torch.ones(2, 3), t)
    assert [r.index for r in trace.records if r.evaluated[0]] == FLUX_EVALUATED


def test_by_level_an_undeclared_run_accumulates_as_a_declared_one():
    profile = measured({"": [1.0, 0.9, 0.8, 0.9, 0.7, 0.9]})
    policy = MagCache(threshold=9.0, max_reuse=99, retention_ratio=0.0).resolve(Setup(profile))
    declared = run_info(6, profile=profile)
    alone = attrs.evolve(declared, timesteps=None)
    scores = [d.score[0] for d in drive(policy, declared)[1:]]
    assert scores == [d.score[0] for d in drive(policy, alone, declared.timesteps)[1:]]
    assert scores == sorted(set(scores))

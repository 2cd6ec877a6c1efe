"""EasyCache: the rule written out in NumPy, and its stand-in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, Context, Refresh, Setup, sample
from cachepolicies.base.errors import InputError, NeedsError, SettingsError
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies import EasyCache
from cachepolicies.reference.workloads import video_dit
from cachepolicies.registry.load import load_plugins
from cachepolicies.substitutes import Residual


def smooth(steps, rows=1, seed=0, pace=1.0):
    """Latents and the outputs at them."""
    g = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(rows, 3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    xs = [a + pace * (k / steps) * b + pace * math.sin(3 * k / steps) * c for k in range(steps)]
    return xs, [torch.tanh(x) + 0.5 for x in xs]


def drive(policy, xs, fs, per_sample=True):
    """Follow a run; a reuse hands on the last evaluated output of the row."""
    steps, rows = len(xs), xs[0].shape[0]
    levels = tuple(1000.0 * (1 - k / steps) for k in range(steps))
    info = RunInfo(
        1000.0, levels, Layout(rows, 1, per_sample), tuple(xs[0].shape), torch.float64, torch.device("cpu"), None
    )
    reads = []

    def read(tensors):
        reads.append(1)
        return [tensor.tolist() for tensor in tensors]

    state, decisions, flowed = policy.start(info), [], fs[0]
    for k, (x, f) in enumerate(zip(xs, fs, strict=True)):
        x = x.clone()
        step = Step(x, levels[k], "x", k, info, read)
        before = len(reads)
        decision = policy.decide(step, state)
        assert len(reads) - before <= 1
        for row in range(rows):
            if not decision.reuse[row if per_sample else 0]:
                flowed = flowed.clone()
                flowed[row] = f[row]
        output = flowed.clone()
        state = policy.observe(step, decision, output, state)
        x.add_(17.0)  # nothing is remembered by reference
        output.add_(17.0)
        decisions.append(decision)
    return decisions


def resolved(**settings):
    return EasyCache(**{"first": 1, "last": 0, **settings}).resolve(Setup())


@given(st.integers(2, 30), st.floats(0.01, 1.0), st.integers(0, 99), st.integers(1, 12), st.integers(0, 3))
def test_the_rule_written_out(steps, threshold, seed, first, last):
    xs, fs = smooth(steps, seed=seed)
    decisions = drive(resolved(threshold=threshold, first=first, last=last), xs, fs)

    def mean(values):
        return values.abs().mean().item()

    total = 0.0
    evaluated: list[int] = []
    for k, decision in enumerate(decisions):
        reuse = False
        if first <= k < steps - last and len(evaluated) > 1:
            new, old = evaluated[-1], evaluated[-2]
            rate = mean(fs[new] - fs[old]) / mean(xs[new] - xs[old])
            total += rate * mean(xs[k] - xs[k - 1]) / mean(fs[new])
            if math.isclose(total, threshold, rel_tol=1e-9):
                return
            reuse = total < threshold
        assert decision.reuse == (reuse,)
        if not reuse:
            evaluated.append(k)
            total = 0.0


@given(st.integers(0, 99))
def test_samples_decide_apart_and_rows_of_one_decision_are_pooled(seed):
    parts = [smooth(12, seed=seed + i, pace=1.0 + i) for i in range(3)]
    xs, fs = ([torch.cat(rows) for rows in zip(*[part[i] for part in parts], strict=True)] for i in (0, 1))
    policy = resolved(threshold=0.3)
    together = drive(policy, xs, fs)
    for d, part in enumerate(parts):
        assert [one.reuse[d] for one in together] == [one.reuse[0] for one in drive(policy, *part)]
    whole = drive(policy, xs, fs, per_sample=False)[2].score[0]
    means = [t.abs().mean() for t in (fs[1] - fs[0], xs[1] - xs[0], xs[2] - xs[1], fs[1])]
    assert whole == pytest.approx(float(means[0] / means[1] * means[2] / means[3]))


def test_what_is_not_finite_is_evaluated_and_the_run_recovers():
    xs, fs = smooth(9, rows=2, pace=0.1)
    xs[3][0, 0, 0] = fs[3][0, 0, 0] = math.nan
    decisions = drive(resolved(threshold=99.0), xs, fs)
    assert [one.reuse[0] for one in decisions] == [False, False, True, False, False, False, True, True, True]
    assert [one.reuse[1] for one in decisions] == [False, False, *[True] * 7]
    assert decisions[3].reason[0] == "estimated change is not finite"


def test_a_latent_or_an_output_that_stands_still():
    x, f = torch.ones(1, 4), torch.zeros(1, 4)
    decisions = drive(resolved(threshold=9.0), [x] * 4, [f] * 4)
    assert decisions[1].reason == ("fewer than two evaluations",)
    assert decisions[2].reason == ("last output, or last change of the latent, is zero",)
    assert not any(one.reuse[0] for one in decisions)


def test_a_threshold_of_zero_never_reuses():
    policy = resolved(threshold=0)
    assert not policy.reuses
    assert not any(one.reuse[0] for one in drive(policy, *smooth(5)))


def test_settings():
    assert load_plugins().policies.create("easycache:threshold=0.1,first=2") == EasyCache(threshold=0.1, first=2)
    assert EasyCache().resolve(Setup()).needs.run_length
    for settings, message in (
        ({"threshold": -1}, "threshold must be a finite number >= 0"),
        ({"first": 0.5}, "first must be an integer >= 0"),
        ({"last": -1}, "last must be an integer >= 0"),
    ):
        with pytest.raises(SettingsError, match=message):
            EasyCache(**settings)


def test_the_stand_in_is_the_input_plus_the_last_difference():
    def refresh(output, given):
        return Refresh(output, [900.0], [True], [0], given)

    now, then, output = (torch.full((1, 2), v) for v in (3.0, 1.0, 5.0))
    stand_in = Residual().predict(Context(800.0, input=now), [refresh(output, then)])
    assert torch.equal(stand_in, torch.full((1, 2), 7.0))
    with pytest.raises(InputError, match=r"has shape \(1, 3\), the input now .* \(1, 2\)"):
        Residual().predict(Context(800.0, input=now), [refresh(torch.zeros(1, 3), then)])


def test_it_is_exact_where_output_minus_input_stands_still_and_of_first_order_elsewhere():
    cached = CachedDenoiser(lambda x, t: x + 2.0, "uniform:every=3", substitute="residual")
    noise = torch.randn(2, 5)
    bare = sample(lambda x, t: x + 2.0, "flow-euler", noise, num_steps=12)
    torch.testing.assert_close(sample(cached, "flow-euler", noise, num_steps=12), bare)
    errors = []
    for h in (0.1, 0.05, 0.025):
        now, then = (torch.tensor([[math.sin(s)]], dtype=torch.float64) for s in (0.3 + h, 0.3))
        stand_in = Residual().predict(Context(1.0, input=now), [Refresh(then.exp(), [2.0], [True], [0], then)])
        errors.append(float((stand_in - now.exp()).abs()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.1)


def test_a_run_with_both():
    cached = CachedDenoiser(
        lambda x, t: torch.tanh(x) * t[:, None] / 1000, "easycache:threshold=0.2,first=3", substitute="residual"
    )
    sample(cached, "flow-euler", torch.randn(2, 5), num_steps=30)
    assert cached.nfe < 30


def test_a_site_that_remembers_residuals_refuses_it():
    model = video_dit().denoiser
    with pytest.raises(NeedsError, match="adds what enters to a difference from it, and site 'blocks' remembers"):
        CachedDenoiser(model, "uniform:every=2", substitute="residual", site="blocks")
    CachedDenoiser(model, "uniform:every=2", substitute="hold", site="blocks")

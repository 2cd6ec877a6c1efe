"""SeaCache: the rule written out in NumPy, and diffusers' own decisions on tiny models."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import diffusers.hooks
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, Setup
from cachepolicies.base.errors import InputError, NeedsError, SettingsError
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies import SeaCache
from cachepolicies.policies.seacache import filtered
from cachepolicies.registry.load import load_plugins
from cachepolicies.schedulers import FlowEuler
from cachepolicies.sites.latent import SpatialLatent
from tiny_models import TINY

FLOW = FlowEuler()


def latents(steps, rows=1, shape=(2, 4, 6), seed=0, pace=1.0, dtype=torch.float64):
    """A straight way from noise to data, as flow matching goes."""
    g = torch.Generator().manual_seed(seed)
    noise, data, bend = (torch.randn(rows, *shape, generator=g, dtype=torch.float64) for _ in range(3))
    levels = [1 - k / steps for k in range(steps)]
    return [(s * noise + (1 - s) * data + pace * math.sin(3 * s) * bend).to(dtype) for s in levels]


def drive(policy, signals, per_sample=True):
    steps, rows = len(signals), signals[0].shape[0]
    levels = tuple(1000.0 * (1 - k / steps) for k in range(steps))
    info = RunInfo(
        1000.0, levels, Layout(rows, 1, per_sample), tuple(signals[0].shape), torch.float64, torch.device("cpu"), None
    )
    reads = []

    def read(tensors):
        reads.append(1)
        return [tensor.tolist() for tensor in tensors]

    state, decisions = policy.start(info), []
    for k, signal in enumerate(signals):
        step = Step(signal, levels[k], "x", k, info, read, {"spatial-latent": signal})
        before = len(reads)
        decision = policy.decide(step, state)
        assert len(reads) - before <= 1
        state = policy.observe(step, decision, signal, state)
        decisions.append(decision)
    return decisions


def resolved(**settings):
    return SeaCache(**settings).resolve(Setup(scheduler=FLOW))


def by_hand(x, sigma, power):
    b = min(max(sigma, 1e-6), 1 - 1e-6)
    gains = []
    for n in x.shape[2:]:
        s = 1 / (np.abs(np.fft.fftfreq(n)) ** power + 1e-16)
        gains.append((1 - b) * s / ((1 - b) ** 2 * s + b**2))
    gain = np.multiply.outer(*gains)
    return np.fft.ifft2(np.fft.fft2(x.numpy()) * gain / gain.mean()).real


@given(st.integers(2, 12), st.floats(0.05, 1.5), st.floats(1.0, 4.0), st.integers(0, 99), st.integers(1, 4))
def test_the_rule_written_out(steps, threshold, power, seed, max_reuse):
    xs = latents(steps, seed=seed)
    decisions = drive(resolved(threshold=threshold, power=power, max_reuse=max_reuse), xs)
    total, streak = 0.0, 0
    for k, decision in enumerate(decisions):
        if 0 < k < steps - 1:
            now, before = by_hand(xs[k], 1 - k / steps, power), by_hand(xs[k - 1], 1 - (k - 1) / steps, power)
            total += np.abs(now - before).mean() / np.abs(before).mean()
            if math.isclose(total, threshold, rel_tol=1e-9):
                return
            reuse = total < threshold and streak < max_reuse
        else:
            reuse = False
        assert decision.reuse == (reuse,)
        total, streak = (total, streak + 1) if reuse else (0.0, 0)


@given(st.integers(0, 99))
def test_samples_decide_apart_and_one_decision_takes_the_mean_of_their_ratios(seed):
    parts = [latents(8, seed=seed + i, pace=3.0 * i) for i in range(3)]
    batch = [torch.cat(rows) for rows in zip(*parts, strict=True)]
    policy = resolved(threshold=0.6)
    together = drive(policy, batch)
    for d, part in enumerate(parts):
        assert [one.reuse[d] for one in together] == [one.reuse[0] for one in drive(policy, part)]
    apart, whole = drive(policy, batch), drive(policy, batch, per_sample=False)
    assert whole[1].score[0] == pytest.approx(sum(apart[1].score) / 3)


def test_no_axes_no_filter_and_the_mean_gain_is_one():
    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(filtered(x, 0.3, 3.0), x)
    point = torch.zeros(1, 1, 5, 7, dtype=torch.float64)
    point[..., 0, 0] = 1
    assert torch.fft.fftn(filtered(point, 0.3, 3.0), dim=(2, 3)).real.mean() == pytest.approx(1)


def test_what_is_not_finite_is_evaluated_and_the_run_recovers():
    xs = latents(8, rows=2, pace=0.1)
    xs[3][0, 0, 0, 0] = math.nan
    decisions = drive(resolved(threshold=99.0, max_reuse=None), xs)
    assert [one.reuse for one in decisions[2:6]] == [(True, True), (False, True), (False, True), (True, True)]
    assert decisions[3].reason[0] == "change of the latent is not finite"


def test_a_threshold_of_zero_never_reuses():
    policy = resolved(threshold=0)
    assert not policy.reuses
    assert not any(one.reuse[0] for one in drive(policy, latents(5)))


def test_what_is_missing_and_bad_settings():
    with pytest.raises(NeedsError, match="no scheduler is known; give scheduler="):
        SeaCache().resolve(Setup())
    for settings, message in (
        ({"threshold": -1}, "threshold must be a finite number >= 0"),
        ({"power": 0}, "power must be a finite number > 0"),
        ({"max_reuse": -1}, "max_reuse must be an integer >= 0"),
        ({"first": 0.5}, "first must be an integer >= 0"),
    ):
        with pytest.raises(SettingsError, match=message):
            SeaCache(**settings)
    assert load_plugins().policies.create("seacache:threshold=0.3") == SeaCache(threshold=0.3)
    with pytest.raises(InputError, match="at most three axes"):
        drive(resolved(), [torch.zeros(1, 1, 1, 1, 1, 1)] * 2)


def raw_flux(module, args, kwargs):
    x = kwargs["hidden_states"]
    tokens = x.reshape(x.shape[0], 4, 4, x.shape[2] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return list(tokens.reshape(x.shape[0], -1, 1, 8, 8))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.6])
@pytest.mark.parametrize("key", ["FluxTransformer2DModel", "WanTransformer3DModel"])
def test_it_decides_as_diffusers_own(key, threshold, rows):
    config: Any = getattr(diffusers.hooks, "SeaCacheConfig", None)
    if config is None:
        pytest.skip("this diffusers has no SeaCache")
    steps, tiny = 20, TINY[key]
    flux = key.startswith("Flux")
    sigmas = [1 - k / steps for k in range(steps)]
    levels = sigmas if flux else [1000 * s for s in sigmas]
    calls = [tiny.inputs(rows, t=level) for level in levels]
    shape = tuple(calls[0]["hidden_states"].shape[1:])
    for call, x in zip(calls, latents(steps, rows, shape, pace=0.5, dtype=torch.float32), strict=True):
        call["hidden_states"] = x
    theirs: Any = tiny.build()
    theirs.enable_cache(config(threshold=threshold, residual_order=0, raw_vision_callback=raw_flux if flux else None))
    ran, step = [], 0
    block = next(m for name, m in theirs.named_modules() if name.endswith("blocks.1"))
    attention = next(m for name, m in block.named_modules() if name.startswith("attn"))
    attention.register_forward_pre_hook(lambda *_: ran.append(step))
    outputs = []
    with torch.no_grad():
        for step, call in enumerate(calls):
            with theirs.cache_context("x", step_index=step, sigma=sigmas[step], num_inference_steps=steps):
                outputs.append(theirs(**call, return_dict=False)[0])
    computed = [k in ran for k in range(steps)]
    mine = CachedDenoiser(
        tiny.build(),
        SeaCache(threshold=threshold, scheduler=FLOW),
        site="blocks",
        substitute="hold",
        per_sample=False,
    )
    with torch.no_grad(), mine.run(timesteps=levels):
        for call, expected in zip(calls, outputs, strict=True):
            torch.testing.assert_close(mine(**call, return_dict=False)[0], expected, atol=1e-5, rtol=1e-5)
    assert [one.evaluated[0] for one in mine.trace.records] == computed
    assert any(computed[1:-1])
    assert not all(computed)


GRIDS = {
    "FluxTransformer2DModel": (1, 8, 8),
    "Flux2Transformer2DModel": (2, 8, 8),
    "ChromaTransformer2DModel": (1, 8, 8),
    "QwenImageTransformer2DModel": (4, 1, 8, 8),
    "LTXVideoTransformer3DModel": (8, 2, 4, 4),
    "LTX2VideoTransformer3DModel": (8, 2, 4, 4),
    "CogVideoXTransformer3DModel": (4, 2, 8, 8),
    "HiDreamImageTransformer2DModel": (4, 8, 8),
}


@pytest.mark.parametrize("key", GRIDS)
def test_adapters_lay_packed_latents_on_their_grid(key):
    tiny = TINY[key]
    adapter = load_plugins().adapters.create(key)
    signal: Any = SpatialLatent().resolve(Setup(adapter=adapter))
    inputs = tiny.inputs(2)
    assert signal.unpack(inputs["hidden_states"], inputs).shape == (2, *GRIDS[key])
    with pytest.raises(InputError, match="cannot be told"):
        signal.unpack(inputs["hidden_states"][:, 0], {})
    if key == "FluxTransformer2DModel":
        assert torch.equal(
            signal.unpack(inputs["hidden_states"], inputs), torch.stack(raw_flux(None, (), inputs)).squeeze(2)
        )

"""The methods of the plugin `cachepolicies-drafts` against independent code: diffusers' hooks, cache-dit."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import cache_dit
import pytest
import torch
from cache_dit import BlockAdapter, DBCacheConfig, FoCaCalibratorConfig, ForwardPattern
from cache_dit.caching.cache_contexts.calibrators.foca import FoCaCalibrator
from diffusers.hooks import FirstBlockCacheConfig
from torch import Tensor, nn

import cachepolicies
from cachepolicies import CachedDenoiser
from cachepolicies.reference.video_dit import load_video_dit
from cachepolicies.testing import registered
from cachepolicies_drafts import Aligned, DBCache, DiCache, FirstBlock, FoCa, FoCaCache, FreqCa, MeanCache, plugin
from enabled_pipelines import one_thread  # noqa: F401  # a fixture
from more_pipelines import MORE
from stack_by_hand import ByHand, blocks_of, calls_of
from tiny_models import TINY
from tiny_pipelines import PIPELINES

STEPS = 12

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's names."""
    with registered(plugin, "cachepolicies-drafts"):
        yield


def entry(key: str) -> Any:
    """Return a tiny pipeline and how it is called."""
    return {**PIPELINES, **MORE}[key]


def sampled(key: str, pipe: Any, *, guidance: bool = True) -> Tensor:
    """Return what a pipeline makes in a run."""
    found: Tensor = entry(key).call(pipe, steps=STEPS, guidance=guidance)
    return found


def first_blocks(key: str, pipe: Any, *, guidance: bool) -> list[float]:
    """Return the scores of a run in which every step is compared with the one before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cachepolicies.CacheWarning)  # nothing is reused
        with cachepolicies.enable(pipe, FirstBlock(threshold=1e-9)) as enabled:
            sampled(key, pipe, guidance=guidance)
            trace = enabled.trace
    return sorted(score for record in trace.records for score in record.score or ())


@pytest.mark.parametrize(
    ("key", "guidance"),
    [("wan", False), ("ltx", True), ("cogvideox", True), ("flux", False), ("hunyuan-video", False)],
)
def test_first_block_is_that_of_diffusers(key, guidance):
    """In one call a step, which both decide on as one."""
    pipe = entry(key).build()
    bare = sampled(key, pipe, guidance=guidance)
    scores = first_blocks(key, pipe, guidance=guidance)
    threshold = 1.3 * scores[len(scores) // 2]
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    theirs = sampled(key, pipe, guidance=guidance)
    pipe.transformer.disable_cache()
    with cachepolicies.enable(pipe, FirstBlock(threshold=threshold)) as enabled:
        ours = sampled(key, pipe, guidance=guidance)
        assert 1 < enabled.trace.nfe < STEPS
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours, bare, atol=1e-5)


class Loop:
    """A trained video transformer in a plain Euler loop."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        generator = torch.Generator().manual_seed(3)
        self.noise = torch.randn(1, 4, 8, 12, 12, generator=generator)
        self.text = torch.randn(1, 3, 32, generator=generator)
        self.timesteps = [1000.0 * (1.0 - step / 20) for step in range(20)]

    def run(self) -> Tensor:
        """Return the sample."""
        x = self.noise
        with torch.no_grad():
            for t, after in zip(self.timesteps, [*self.timesteps[1:], 0.0], strict=True):
                given = {"timestep": torch.tensor([t]), "encoder_hidden_states": self.text, "return_dict": False}
                x = x + (after - t) / 1000 * self.network(hidden_states=x, **given)[0]
        return x


@functools.cache
def sample_of_the_trained() -> Tensor:
    """Return what the trained video transformer makes with nothing cached."""
    return Loop(load_video_dit()).run()


def cached_by_cache_dit(loop: Loop, config: DBCacheConfig, calibrator: Any = None) -> Tensor:
    """Return the sample that cache-dit makes."""
    network: Any = loop.network
    adapter = BlockAdapter(
        transformer=network, blocks=network.blocks, forward_pattern=ForwardPattern.Pattern_2, has_separate_cfg=False
    )
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)
        cache_dit.refresh_context(network, num_inference_steps=20)
        sample = loop.run()
        cache_dit.disable_cache(adapter)
    return sample


@pytest.mark.parametrize(
    ("first", "last", "in_a_row", "forecasts"),
    [
        *((first, last, in_a_row, False) for first, last in ((1, 0), (1, 1), (2, 1)) for in_a_row in (None, 2)),
        (1, 0, 2, True),
        (1, 1, 4, True),
    ],
)
def test_dbcache_is_that_of_cache_dit(first, last, in_a_row, forecasts):
    """On the trained video transformer, four steps of warm-up; both run the same blocks at the same steps.

    Held, or forecast by FoCa on both sides.
    """
    logging.getLogger("cache_dit").setLevel(logging.ERROR)
    network = load_video_dit()
    loop, bare = Loop(network), sample_of_the_trained()
    ran: list[int] = []
    hook = network.get_submodule(f"blocks.{first}").register_forward_hook(lambda *_: ran.append(1))
    threshold = 10.0 if forecasts else 0.12
    config = DBCacheConfig(
        Fn_compute_blocks=first,
        Bn_compute_blocks=last,
        max_warmup_steps=4,
        max_continuous_cached_steps=-1 if in_a_row is None else in_a_row,
        num_inference_steps=20,
        residual_diff_threshold=threshold,
    )
    theirs = cached_by_cache_dit(loop, config, FoCaCalibratorConfig() if forecasts else None)
    their_count = len(ran)
    ran.clear()
    policy = DBCache(first=first, last=last, threshold=threshold, warm_up=4, in_a_row=in_a_row)
    stand_in = FoCa(guard=None) if forecasts else "hold"
    enabled_by = cachepolicies.enable(network, policy, substitute=stand_in, learn=False)
    with enabled_by as enabled, enabled.run(loop.timesteps):
        ours = loop.run()
    hook.remove()
    assert len(ran) == their_count
    assert 4 < len(ran) < 20
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, bare, atol=1e-4)


@pytest.mark.parametrize("every", [2, 3, 5, 7])
@pytest.mark.parametrize("first", [1, 3])
def test_foca_is_that_of_cache_dit(every, first):
    """On tensors without any order, so that no error is small; at intervals with and without damping."""
    outputs = torch.randn(24, 2, 3, 5, generator=torch.Generator().manual_seed(every))
    levels = [float(24 - step) for step in range(24)]
    denoiser = CachedDenoiser(
        lambda x, t: outputs[levels.index(float(t))].clone(),
        FoCaCache(every=every, first=first),
        site="output",
        substitute=FoCa(guard=None),
    )
    theirs = FoCaCalibrator()
    theirs.maybe_init_state()
    held = 0
    with denoiser.run(timesteps=levels) as run:
        for step, t in enumerate(levels):
            ours = denoiser(torch.zeros(2, 3, 5), t)
            theirs.mark_step_begin()
            if all(run.trace.records[-1].evaluated):
                theirs.update(outputs[step])
                expected = outputs[step]
            else:
                expected = theirs.approximate()
            torch.testing.assert_close(ours, expected)
            held += torch.equal(ours, outputs[max(step - 1, 0)])
    assert run.trace.nfe < 24
    assert held < 24 - run.trace.nfe


FREQUENCIES = {
    "FluxTransformer2DModel": (4, 4),
    "WanTransformer3DModel": (2, 2, 2),
    "SD3Transformer2DModel": (4, 4),
    "LTXVideoTransformer3DModel": (2, 4, 4),
    "CogVideoXTransformer3DModel": (2, 4, 4),
    "DiTTransformer2DModel": (4, 4),
}


def low_by_hand(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the low band of tokens ``(B, L, C)``: a projection, made of every wave of the grid that is low."""
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes])
    found = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
    for wave in places.T:
        cycles = torch.tensor([min(float(n), size - float(n)) / size for n, size in zip(wave, grid, strict=True)])
        if (2 * cycles).square().mean().sqrt() <= 0.3:
            phase = 2 * torch.pi * (places * (wave / torch.tensor(grid)).unsqueeze(1)).sum(0)
            found += torch.cos(phase.unsqueeze(0) - phase.unsqueeze(1)) / tokens.shape[1]
    return (found @ tokens.double()).to(tokens.dtype)


@torch.no_grad()
@pytest.mark.parametrize("key", FREQUENCIES)
def test_freqca_is_the_stack_by_hand_with_its_bands_apart(key):
    """The residual's low band of the last computed step, the high band on a parabola, put in place by torch's hooks."""
    tiny, grid, steps = TINY[key], FREQUENCIES[key], 8
    network, other = tiny.build(), tiny.build()
    levels = [tiny.t_start * (1 - 0.05 * step) for step in range(steps)]
    latents = [tiny.inputs(2, seed=step)[tiny.x_name] for step in range(steps)]
    calls = [tiny.inputs(2, t=t) | {tiny.x_name: x} for t, x in zip(levels, latents, strict=True)]
    stand_in = "bands:low=hold,high='quadratic:time=t,guard=None'"
    with (
        cachepolicies.enable(network, FreqCa(every=9), substitute=stand_in, learn=False) as enabled,
        enabled.run(levels) as run,
    ):
        ours = [network(**given)[0] for given in calls]
    assert [all(record.evaluated) for record in run.trace.records] == [True] * 3 + [False] * 5
    hand, seen = ByHand(other), []
    for given, found in zip(calls[:3], ours, strict=False):
        assert torch.equal(found, hand.run(given, replace=False)[0])
        seen.append(hand.residuals[0])
    for step in range(3, steps):
        n = step - 2
        parabola = (n + 1) * (n + 2) / 2 * seen[2] - n * (n + 2) * seen[1] + n * (n + 1) / 2 * seen[0]
        hand.residuals = [low_by_hand(seen[2], grid) + parabola - low_by_hand(parabola, grid)]
        torch.testing.assert_close(ours[step], hand.run(calls[step], replace=True)[0], atol=1e-4, rtol=1e-4)
        hand.residuals = [seen[2]]
        assert not torch.allclose(ours[step], hand.run(calls[step], replace=True)[0], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("key", "axes"), [("CogVideoXTransformer3DModel", (1, 3, 4)), ("DiTTransformer2DModel", (2, 3))]
)
def test_at_the_output_the_bands_are_those_of_the_latents_axes(key, axes):
    """Wherever the channels are: frames come first for CogVideoX."""
    tiny = TINY[key]
    network, levels = tiny.build(), [tiny.t_start * (1 - 0.05 * step) for step in range(8)]
    latents = [tiny.inputs(1, seed=step)[tiny.x_name] for step in range(8)]
    calls = [tiny.inputs(1, t=t) | {tiny.x_name: x} for t, x in zip(levels, latents, strict=True)]
    bare = [network(**given)[0] for given in calls[:2]]
    policy, stand_in = FreqCa(every=9, first=2), "bands:low=hold,high='linear:time=t,guard=None'"
    with (
        cachepolicies.enable(network, policy, substitute=stand_in, site="output", learn=False) as enabled,
        enabled.run(levels),
    ):
        ours = [network(**given)[0] for given in calls]
    change = bare[1] - bare[0]
    spectrum = torch.fft.fftn(change, dim=axes)
    squares = torch.zeros(())
    for axis in axes:
        along = torch.fft.fftfreq(change.shape[axis]).reshape(-1, *[1] * (change.ndim - 1 - axis))
        squares = squares + (2 * along).square() / len(axes)
    high = torch.fft.ifftn(spectrum * (squares.sqrt() > 0.3), dim=axes).real
    torch.testing.assert_close(ours[2], bare[1] + high, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours[2], bare[1] + change, atol=1e-3)


@torch.no_grad()
def test_a_wrapper_that_doubles_the_batch_has_two_grids_a_sample():
    """A sample's tokens stand there twice; each half is what it is in a batch of its own."""
    tiny = TINY["WanTransformer3DModel"]
    network, levels = tiny.build(), [tiny.t_start * (1 - 0.05 * step) for step in range(8)]
    text = tiny.inputs(2)["encoder_hidden_states"]

    class Doubled(nn.Module):
        """Guidance in one call."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            """Return what is left of the unconditional half, and the other."""
            given = {"timestep": t.expand(2), "encoder_hidden_states": text, "return_dict": False}
            halves = network(hidden_states=torch.cat([x, x]), **given)[0].chunk(2)
            return 3 * halves[0] - 2 * halves[1]

    latents = [tiny.inputs(1, seed=step)["hidden_states"] for step in range(8)]
    policy = FreqCa(every=9)

    def run(denoiser: Any) -> list[Tensor]:
        return [denoiser(x, torch.tensor([t])) for x, t in zip(latents, levels, strict=True)]

    wrapped = CachedDenoiser(Doubled(), policy, scheduler=None)
    with wrapped.run(timesteps=levels):
        ours = run(wrapped)
    with cachepolicies.enable(network, policy, learn=False) as enabled, enabled.run(levels):
        apart = run(Doubled())
    for one, other in zip(ours, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert wrapped.trace.nfe == 3


METHODS = {
    "first-block": (FirstBlock(threshold=0.0), FirstBlock(threshold=10.0), None),
    "dbcache": (DBCache(first=1, last=1, most=0), DBCache(first=1, last=1, threshold=10.0, warm_up=2), None),
    "dicache": (DiCache(start_after=1.0), DiCache(threshold=100.0), Aligned()),
    "focacache": (FoCaCache(every=1), FoCaCache(every=3, first=2), None),
    "freqca": (FreqCa(every=1), FreqCa(every=3, first=2), None),
}
TRANSFORMERS = ("flux", "wan", "sd3", "ltx", "cogvideox", "dit")


@functools.cache
def plain(key: str) -> tuple[Any, Tensor]:
    """Return a pipeline, for all tests that leave it as they found it, and what it makes with nothing cached."""
    pipe = entry(key).build()
    return pipe, sampled(key, pipe)


@pytest.mark.parametrize("key", TRANSFORMERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_serves_real_pipelines(method, key):
    """With guidance as the pipeline does it: plain without reuse, fewer blocks run, a second run is equal."""
    nothing, something, substitute = METHODS[method]
    pipe, bare = plain(key)
    with cachepolicies.enable(pipe, nothing, substitute=substitute):
        assert torch.equal(sampled(key, pipe), bare)
    with cachepolicies.enable(pipe, something, substitute=substitute) as enabled:
        counted, handles = calls_of([blocks_of(pipe.transformer)[0].norm1])
        first = sampled(key, pipe)
        for handle in handles:
            handle.remove()
        trace = enabled.trace
        second = sampled(key, pipe)
    assert torch.equal(first, second)
    assert not torch.equal(first, bare)
    assert 0 < trace.nfe < STEPS
    if something.site == "blocks":  # the others run the first block at every step
        assert len(counted) == sum(all(record.evaluated) for record in trace.records) < len(trace.records)
    assert torch.equal(sampled(key, pipe), bare)


PLAN, WINDOWS = (0, 1, 3, 6, 11), (1, 2, 2, 3, 1)
"""Steps that MeanCache computes, and how many it looks back from those behind each."""


@contextlib.contextmanager
def guided_velocities_by_hand(pipe: Any) -> Iterator[None]:
    """Have the scheduler get the mean velocity of MeanCache in the place of the guided velocity, but for PLAN."""
    log: list[tuple[float, Tensor, Tensor]] = []
    step_of = pipe.scheduler.step

    def step(output: Tensor, t: Any, sample: Tensor, **given: Any) -> Any:
        sigmas, index, v = pipe.scheduler.sigmas.tolist(), len(log), output
        if index not in PLAN:
            edge = max(number for number, start in enumerate(PLAN) if start < index)
            s0, x0, v0 = log[-WINDOWS[edge]]
            j = (v0 - (sample - x0) / (sigmas[index] - s0)) / (sigmas[index] - s0)
            v = log[-1][2] - j * (sigmas[index + 1] - sigmas[index])
        log.append((sigmas[index], sample.clone(), v.clone()))
        return step_of(v, t, sample, **given)

    pipe.scheduler.step = step
    try:
        yield
    finally:
        del pipe.scheduler.step


@pytest.mark.parametrize("key", ["wan", "sd3"])
def test_meancache_of_the_branches_is_that_of_the_guided_velocity(key):
    """Branches that are cut each for itself, in calls of their own or in one doubled batch, with a constant scale."""
    pipe = entry(key).build()
    bare = sampled(key, pipe)
    with guided_velocities_by_hand(pipe):
        by_hand = sampled(key, pipe)
    with cachepolicies.enable(pipe, MeanCache(plan=PLAN, window=WINDOWS)) as enabled:
        ours = sampled(key, pipe)
        assert {record.index for record in enabled.trace.records if any(record.evaluated)} == set(PLAN)
        assert torch.equal(sampled(key, pipe), ours)
    torch.testing.assert_close(ours, by_hand, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, bare, atol=1e-3)
    with (
        pytest.warns(cachepolicies.CacheWarning, match="nothing was reused"),
        cachepolicies.enable(pipe, MeanCache(plan=tuple(range(STEPS)))),
    ):
        assert torch.equal(sampled(key, pipe), bare)


def test_a_guided_velocity_that_is_rescaled_is_another_place():
    """QwenImagePipeline gives it the norm of the conditional one: each branch is continued as it comes."""
    pipe = entry("qwen-image").build()
    for given, same in (({"true_cfg_scale": 6.0}, False), ({"guidance": False}, True)):
        with guided_velocities_by_hand(pipe):
            by_hand = entry("qwen-image").call(pipe, steps=STEPS, **given)
        with cachepolicies.enable(pipe, MeanCache(plan=PLAN, window=WINDOWS)):
            ours = entry("qwen-image").call(pipe, steps=STEPS, **given)
        assert torch.allclose(ours, by_hand, atol=1e-5, rtol=1e-5) == same


@pytest.mark.parametrize("key", ["cogvideox", "dit"])
def test_meancache_is_refused_where_no_velocity_is_predicted(key):
    """Their schedulers have the noise, or v of a variance-preserving schedule, predicted."""
    with pytest.raises(cachepolicies.NeedsError, match="works on velocities of flow matching"):
        cachepolicies.enable(entry(key).build(), MeanCache())

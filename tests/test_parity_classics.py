"""The methods of the plugin `cachepolicies-classics` against independent code: DeepCache's own, diffusers' hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers.hooks import PyramidAttentionBroadcastConfig
from torch import Tensor, nn

import cachepolicies
from cachepolicies.adapters import MLP, adapter_of, blocks_of
from cachepolicies.sites import layers_of
from cachepolicies.testing import registered
from cachepolicies_classics import FORA, PAB, AdaCache, DeepCache, DeltaDiT, plugin
from enabled_pipelines import one_thread  # noqa: F401  # a fixture
from more_pipelines import MORE
from tiny_pipelines import PIPELINES

STEPS = 12


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's names."""
    with registered(plugin, "cachepolicies-classics"):
        yield


def entry(key: str) -> Any:
    """Return a tiny pipeline and how it is called."""
    return {**PIPELINES, **MORE}[key]


def sampled(key: str, pipe: Any) -> Tensor:
    """Return what a pipeline makes in a run with guidance."""
    found: Tensor = entry(key).call(pipe, steps=STEPS)
    return found


@contextmanager
def deepcache(pipe: Any, interval: int, branch: int) -> Iterator[None]:
    """Have the package's own code serve a pipeline."""
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


def with_two_layers(key: str) -> Any:
    """Return a pipeline whose U-Net has two layers a block: the package's numbers of branches are made for that."""
    torch.manual_seed(0)
    pipe = entry(key).build()
    config = {**pipe.unet.config, "layers_per_block": 2}
    unet = type(pipe.unet).from_config(config).eval().requires_grad_(False)
    pipe.unet = unet
    return pipe


@pytest.mark.parametrize("key", ["sd", "sdxl"])
@pytest.mark.parametrize(("interval", "branch"), [(2, 0), (3, 0), (3, 1), (3, 2), (5, 3), (4, 5)])
def test_deepcache_is_that_of_the_package(key, interval, branch):
    """Skip connections are numbered as the package does it; bit for bit."""
    pipe = with_two_layers(key)
    bare = sampled(key, pipe)
    with deepcache(pipe, interval, branch):
        theirs = sampled(key, pipe)
    with cachepolicies.enable(pipe, DeepCache(interval=interval, branch=branch)) as enabled:
        ours = sampled(key, pipe)
        assert enabled.trace.nfe < STEPS
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, bare)
    assert torch.equal(sampled(key, pipe), bare)


@contextmanager
def pyramid(pipe: Any, key: str, **ranges: Any) -> Iterator[None]:
    """Have diffusers' hooks serve a pipeline."""
    config = PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: pipe.current_timestep, **ranges)
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("window", [(100, 800), (300, 950)])
def test_pab_is_that_of_diffusers_where_both_branches_are_one_call(interval, window):
    """CogVideoX: one attention, over text and video, in a batch that is doubled for guidance."""
    pipe = entry("cogvideox").build()
    given = {
        "spatial_attention_block_skip_range": interval,
        "spatial_attention_timestep_skip_range": window,
        "spatial_attention_block_identifiers": ("transformer_blocks",),
    }
    with pyramid(pipe, "cogvideox", **given):
        theirs = sampled("cogvideox", pipe)
    with cachepolicies.enable(pipe, PAB(spatial=interval, window=window)):
        ours = sampled("cogvideox", pipe)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, sampled("cogvideox", pipe))


def attention_by_hand(pipe: Any, interval: int, window: tuple[float, float]) -> Tensor:
    """Return what Wan makes with each branch's own attention held, by torch's own hooks."""
    modules = [m for path, m in pipe.transformer.named_modules() if path.endswith(("attn1", "attn2"))]
    kept: dict[tuple[str, nn.Module], Tensor] = {}
    levels: list[float] = []
    state: dict[str, Any] = {"branch": "", "t": 0.0}

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        t = float(kwargs["timestep"].flatten()[0])
        state["branch"] = "uncond" if state["t"] == t else "cond"  # cond first in every step
        state["t"] = t
        if t not in levels:
            levels.append(t)

    def leave(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        key, step = (str(state["branch"]), module), len(levels) - 1
        if window[0] < float(state["t"]) < window[1] and step % interval:
            return kept[key]
        kept[key] = output
        return None

    hooks = [pipe.transformer.register_forward_pre_hook(begin, with_kwargs=True)]
    hooks += [module.register_forward_hook(leave) for module in modules]
    found = sampled("wan", pipe)
    for hook in hooks:
        hook.remove()
    return found


def test_pab_is_right_where_that_of_diffusers_is_not():
    """Wan calls its branches one after the other, and diffusers' hooks keep one memory for both.

    At an interval of 2 the unconditional branch is handed the conditional one's attention at every step.
    """
    pipe = entry("wan").build()
    window = (100.0, 950.0)
    by_hand = attention_by_hand(pipe, 2, window)
    with cachepolicies.enable(pipe, PAB(spatial=2, cross=2, window=window)):
        ours = sampled("wan", pipe)
    assert torch.equal(ours, by_hand)
    given = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": window,
        "cross_attention_block_skip_range": 2,
        "cross_attention_timestep_skip_range": window,
        "spatial_attention_block_identifiers": ("blocks",),
        "cross_attention_block_identifiers": ("blocks",),
    }
    with pyramid(pipe, "wan", **given):
        theirs = sampled("wan", pipe)
    assert not torch.allclose(theirs, by_hand)


METHODS = {
    "adacache": (AdaCache(codebook=((1.0, 1),)), AdaCache(codebook=((1.0, 3),))),
    "fora": (FORA(every=1), FORA(every=2)),
    "pab": (PAB(spatial=1, temporal=1, cross=1), PAB(spatial=2, temporal=2, cross=3, window=(1, 990))),
    "delta-dit": (DeltaDiT(every=1, blocks=1), DeltaDiT(every=2, blocks=1)),
    "deepcache": (DeepCache(interval=1), DeepCache(interval=2)),
}
PIPES = {"deepcache": ("sd", "sdxl")}
TRANSFORMERS = ("flux", "wan", "sd3", "ltx", "cogvideox", "dit")
CASES = [(method, key) for method in METHODS for key in PIPES.get(method, TRANSFORMERS)]


@pytest.mark.parametrize(("method", "key"), CASES)
def test_every_method_serves_real_pipelines(method, key):
    """With guidance as the pipeline does it: plain without reuse, fewer modules run, a second run is equal."""
    nothing, something = METHODS[method]
    pipe = entry(key).build()
    bare = sampled(key, pipe)
    with cachepolicies.enable(pipe, nothing):
        assert torch.equal(sampled(key, pipe), bare)
    with cachepolicies.enable(pipe, something) as enabled:
        assert enabled.policy.reuses
        denoiser = getattr(pipe, "unet", None) or pipe.transformer
        ran: list[int] = []
        watched = watched_modules(denoiser, method)
        hooks = [module.register_forward_hook(lambda *_: ran.append(1)) for module in watched]
        first = sampled(key, pipe)
        once = len(ran)
        second = sampled(key, pipe)
        for hook in hooks:
            hook.remove()
        trace = enabled.trace
    assert torch.equal(first, second)
    assert len(ran) == 2 * once
    calls = len({record.call for record in trace.records})
    assert 0 < once < calls * len(watched)
    evaluated = sum(any(record.evaluated) for record in trace.records)
    if method in ("adacache", "fora", "pab"):
        assert once == evaluated
    assert not torch.equal(first, bare)
    assert torch.equal(sampled(key, pipe), bare)


def watched_modules(denoiser: nn.Module, method: str) -> list[nn.Module]:
    """Return the modules that a method may leave out."""
    if method == "deepcache":
        return [denoiser.get_submodule("mid_block")]
    if method == "delta-dit":
        blocks = [block for block, _ in blocks_of(denoiser, adapter_of(denoiser)).values()]
        return [blocks[0], blocks[-1]]
    layers = layers_of(denoiser, adapter_of(denoiser)).values()
    return [module for module, kind in layers if method in ("adacache", "fora") or kind != MLP]

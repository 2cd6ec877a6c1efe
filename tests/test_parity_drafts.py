"""The methods of the plugin `cachepolicies-drafts` against independent code: diffusers' hooks, cache-dit."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import cache_dit
import pytest
import torch
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern
from diffusers.hooks import FirstBlockCacheConfig
from torch import Tensor, nn

import cachepolicies
from cachepolicies.reference.video_dit import load_video_dit
from cachepolicies.testing import registered
from cachepolicies_drafts import Aligned, DBCache, DiCache, FirstBlock, plugin
from enabled_pipelines import one_thread  # noqa: F401  # a fixture
from more_pipelines import MORE
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


@pytest.mark.parametrize(("first", "last"), [(1, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("in_a_row", [None, 2])
def test_dbcache_is_that_of_cache_dit(first, last, in_a_row):
    """On the trained video transformer, four steps of warm-up; both run the same blocks at the same steps."""
    logging.getLogger("cache_dit").setLevel(logging.ERROR)
    network = load_video_dit()
    loop = Loop(network)
    bare = loop.run()
    ran: list[int] = []
    hook = network.get_submodule(f"blocks.{first}").register_forward_hook(lambda *_: ran.append(1))
    threshold = 0.12
    config = DBCacheConfig(
        Fn_compute_blocks=first,
        Bn_compute_blocks=last,
        max_warmup_steps=4,
        max_continuous_cached_steps=-1 if in_a_row is None else in_a_row,
        num_inference_steps=20,
        residual_diff_threshold=threshold,
    )
    adapter = BlockAdapter(
        transformer=network, blocks=network.blocks, forward_pattern=ForwardPattern.Pattern_2, has_separate_cfg=False
    )
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        cache_dit.enable_cache(adapter, cache_config=config)
        cache_dit.refresh_context(network, num_inference_steps=20)
        theirs = loop.run()
        cache_dit.disable_cache(adapter)
    their_count = len(ran)
    ran.clear()
    policy = DBCache(first=first, last=last, threshold=threshold, warm_up=4, in_a_row=in_a_row)
    with cachepolicies.enable(network, policy, learn=False) as enabled, enabled.run(loop.timesteps):
        ours = loop.run()
    hook.remove()
    assert len(ran) == their_count
    assert 4 < len(ran) < 20
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, bare, atol=1e-4)


METHODS = {
    "first-block": (FirstBlock(threshold=0.0), FirstBlock(threshold=10.0), None),
    "dbcache": (DBCache(first=1, last=1, most=0), DBCache(first=1, last=1, threshold=10.0, warm_up=2), None),
    "dicache": (DiCache(start_after=1.0), DiCache(threshold=100.0), Aligned()),
}
TRANSFORMERS = ("flux", "wan", "sd3", "ltx", "cogvideox", "dit")


@pytest.mark.parametrize("key", TRANSFORMERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_serves_real_pipelines(method, key):
    """With guidance as the pipeline does it: plain without reuse, fewer blocks run, a second run is equal."""
    nothing, something, substitute = METHODS[method]
    pipe = entry(key).build()
    bare = sampled(key, pipe)
    with cachepolicies.enable(pipe, nothing, substitute=substitute):
        assert torch.equal(sampled(key, pipe), bare)
    with cachepolicies.enable(pipe, something, substitute=substitute) as enabled:
        first = sampled(key, pipe)
        trace = enabled.trace
        second = sampled(key, pipe)
    assert torch.equal(first, second)
    assert not torch.equal(first, bare)
    assert 0 < trace.nfe < STEPS
    assert torch.equal(sampled(key, pipe), bare)

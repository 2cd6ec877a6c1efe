"""The methods of the plugin `cachepolicies-classics` against independent code: DeepCache's own, diffusers' hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from DeepCache import DeepCacheSDHelper
from diffusers.hooks import FasterCacheConfig, PyramidAttentionBroadcastConfig
from torch import Tensor, nn

import cachepolicies
from cachepolicies import Context, Refresh
from cachepolicies.adapters import CROSS, MLP, SPATIAL, TEMPORAL, adapter_of, blocks_of
from cachepolicies.sites import layers_of
from cachepolicies.testing import registered
from cachepolicies_classics import (
    FORA,
    L2C,
    PAB,
    AdaCache,
    CFGCache,
    DeepCache,
    DeltaDiT,
    FasterCache,
    FromBranch,
    LastChange,
    LayerMask,
    plugin,
)
from enabled_pipelines import one_thread  # noqa: F401  # a fixture
from more_pipelines import MORE
from tiny_pipelines import PIPELINES

STEPS = 12
CPU = torch.device("cpu")


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


COGVIDEOX = [913.0, 830.0, 747.0, 664.0, 581.0, 498.0, 415.0, 332.0, 249.0, 166.0, 83.0, 0.0]
"""Timesteps of the tiny CogVideoX pipeline."""


@contextmanager
def faster(pipe: Any, **given: Any) -> Iterator[None]:
    """Have diffusers' hooks serve a pipeline; what is not given is left as it is."""
    nowhere = (-2, -1)
    config = {
        "spatial_attention_timestep_skip_range": nowhere,
        "temporal_attention_timestep_skip_range": nowhere,
        "unconditional_batch_timestep_skip_range": nowhere,
        "attention_weight_callback": lambda _: 0.5,
        "current_timestep_callback": lambda: pipe.current_timestep,
        "tensor_format": "BFCHW",
    }
    pipe.transformer.enable_cache(FasterCacheConfig(**{**config, **given}))
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


def test_cfg_cache_is_that_of_diffusers_where_both_branches_are_one_call():
    """CogVideoX: of the doubled batch only the conditional half is evaluated."""
    pipe, every, start = entry("cogvideox").build(), 3, 3
    size = {"height": 48, "width": 64}
    given = {
        "unconditional_batch_skip_range": every,
        "unconditional_batch_timestep_skip_range": (-1, COGVIDEOX[start] + 1),
        "low_frequency_weight_update_timestep_range": (COGVIDEOX[8], 1001),
        "high_frequency_weight_update_timestep_range": (-1, COGVIDEOX[5]),
        "alpha_low_frequency": 1.15,
        "alpha_high_frequency": 1.3,
    }
    with faster(pipe, **given):
        theirs = entry("cogvideox").call(pipe, steps=STEPS, **size)
    substitute = FromBranch(low=1.15, low_until=8 / STEPS, high=1.3, high_from=6 / STEPS)
    policy = CFGCache(start_after=start / STEPS, every=every)
    with cachepolicies.enable(pipe, policy, substitute=substitute) as enabled:
        ours = entry("cogvideox").call(pipe, steps=STEPS, **size)
        skipped = sum(step >= start and step % every > 0 for step in range(STEPS))
        assert enabled.trace.nfe == STEPS - skipped / 2
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours, entry("cogvideox").call(pipe, steps=STEPS, **size), atol=1e-5)


class AheadByHand:
    """Attention of a pipeline extrapolated by torch's own hooks.

    Args:
        modules: the attentions.
        skipped: steps at which they are extrapolated.
        weight: of a step.
        counts: whether what was extrapolated counts among the last two outputs, as in diffusers' hooks.
    """

    def __init__(self, modules: list[nn.Module], skipped: set[int], weight: Any, *, counts: bool = False) -> None:
        self.skipped, self.weight, self.counts = skipped, weight, counts
        self.modules = modules
        self.kept: dict[tuple[str, nn.Module], list[tuple[Tensor, ...]]] = {}
        self.levels: list[float] = []
        self.branch, self.t = "", -1.0

    def run(self, key: str, pipe: Any, **given: Any) -> Tensor:
        """Return what the pipeline makes."""
        hooks = [pipe.transformer.register_forward_pre_hook(self._begin, with_kwargs=True)]
        hooks += [module.register_forward_hook(self._leave) for module in self.modules]
        found: Tensor = entry(key).call(pipe, steps=STEPS, **given)
        for hook in hooks:
            hook.remove()
        return found

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        t = float(kwargs["timestep"].flatten()[0])
        self.branch = "uncond" if self.t == t else "cond"  # cond first in every step
        self.t = t
        if t not in self.levels:
            self.levels.append(t)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        step = len(self.levels) - 1
        kept = self.kept.setdefault((self.branch, module), [])
        now: Any = output
        if step in self.skipped:
            now = self._ahead(kept, step)
        if step not in self.skipped or self.counts:
            kept.append(now if isinstance(now, tuple) else (now,))
        return now

    def _ahead(self, kept: list[tuple[Tensor, ...]], step: int) -> Any:
        older, newest = kept[-2:]
        ahead = tuple(one + (one - two) * self.weight(step) for one, two in zip(newest, older, strict=True))
        return ahead if len(ahead) > 1 else ahead[0]


def attentions(pipe: Any) -> list[nn.Module]:
    """Return every attention of a pipeline's transformer."""
    transformer = pipe.transformer
    return [module for module, kind in layers_of(transformer, adapter_of(transformer)).values() if kind != MLP]


def rises(step: int) -> float:
    """Return a weight that rises from step 2 to step 10."""
    return 0.9 * (step - 2) / 8


HALF, THIRD = LastChange(), LastChange(weight=0.3)
RISING = LastChange(weight=0.9, rising=(2 / STEPS, 10 / STEPS))


@pytest.mark.parametrize(
    ("key", "every", "substitute", "weight"),
    [
        ("wan", 2, HALF, lambda _: 0.5),
        ("wan", 2, RISING, rises),
        ("cogvideox", 3, THIRD, lambda _: 0.3),
        ("flux", 2, HALF, lambda _: 0.5),
    ],
)
def test_fastercache_is_that_by_hand(key, every, substitute, weight):
    """From the last two computed outputs, of each branch for itself; attention with two outputs too."""
    pipe = entry(key).build()
    skipped = {step for step in range(4, STEPS) if step % every}
    by_hand = AheadByHand(attentions(pipe), skipped, weight).run(key, pipe)
    with cachepolicies.enable(pipe, FasterCache(start_after=4 / STEPS, every=every), substitute=substitute):
        ours = sampled(key, pipe)
    torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=1e-5)
    held = cachepolicies.enable(pipe, FasterCache(start_after=4 / STEPS, every=every), substitute="hold")
    with held:
        assert not torch.allclose(sampled(key, pipe), ours, atol=1e-5)


def test_fastercache_is_that_of_diffusers_until_it_reads_what_it_made_up():
    """CogVideoX without guidance: the same where one step is extrapolated; diffusers' then counts it as computed."""
    pipe = entry("cogvideox").build()
    attended = attentions(pipe)
    for first in (11, 5):
        level = COGVIDEOX[first] + 1
        given = {"is_guidance_distilled": True, "spatial_attention_timestep_skip_range": (-1, level)}
        with faster(pipe, **given):
            theirs = entry("cogvideox").call(pipe, steps=STEPS, guidance=False)
        skipped = {step for step in range(first, STEPS) if step % 2}
        of_theirs = AheadByHand(attended, skipped, lambda _: 0.5, counts=True).run("cogvideox", pipe, guidance=False)
        torch.testing.assert_close(theirs, of_theirs, atol=1e-6, rtol=1e-5)
        with cachepolicies.enable(pipe, FasterCache(start_after=first / STEPS)) as enabled:
            ours = entry("cogvideox").call(pipe, steps=STEPS, guidance=False)
            assert enabled.policy.reuses
        assert torch.allclose(ours, theirs, atol=1e-6) == (len(skipped) == 1)


def test_fastercache_serves_separate_calls_which_that_of_diffusers_does_not():
    """Wan calls its branches one after the other; diffusers' hooks take half of each for the unconditional one.

    With one prompt they fail at the first step. Told that nothing is guided, they keep one memory for both branches.
    """
    pipe = entry("wan").build()
    given = {"spatial_attention_timestep_skip_range": (-1, 900.0), "tensor_format": "BCFHW"}
    with faster(pipe, **given), pytest.raises(IndexError):
        sampled("wan", pipe)
    wan = entry("wan").build()
    levels: list[float] = []
    hook = wan.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: levels.append(float(kwargs["timestep"].flatten()[0])), with_kwargs=True
    )
    sampled("wan", wan)
    hook.remove()
    first = levels[2 * (STEPS - 1)]  # the last step alone is extrapolated
    own = [module for path, module in wan.transformer.named_modules() if path.endswith("attn1")]
    by_hand = AheadByHand(own, {STEPS - 1}, lambda _: 0.5).run("wan", wan)
    policy = FasterCache(start_after=(STEPS - 1) / STEPS)
    with cachepolicies.enable(wan, policy, site="spatial_attention"):
        ours = sampled("wan", wan)
    torch.testing.assert_close(ours, by_hand, atol=1e-6, rtol=1e-5)
    with faster(wan, **{**given, "spatial_attention_timestep_skip_range": (-1, first + 1)}, is_guidance_distilled=True):
        theirs = sampled("wan", wan)
    assert not torch.allclose(theirs, by_hand, atol=1e-5)


def cfg_by_hand(pipe: Any, skipped: set[int]) -> Tensor:
    """Return what Wan makes where its unconditional calls are made up, by replacing the transformer's forward."""
    transformer, forward = pipe.transformer, pipe.transformer.forward
    seen: dict[str, Any] = {"t": None, "step": -1, "factor": 1.0}

    def call(*args: Any, **kwargs: Any) -> Any:
        t = float(kwargs["timestep"].flatten()[0])
        if seen["t"] != t:  # cond first in every step
            seen.update(t=t, step=seen["step"] + 1)
            seen["cond"] = forward(*args, **kwargs)[0]
            return (seen["cond"].clone(),)
        if seen["step"] not in skipped:
            uncond = forward(*args, **kwargs)[0]
            seen.update(difference=uncond - seen["cond"], factor=1.0)
            return (uncond,)
        seen["factor"] *= 1.2
        return (seen["cond"] + seen["factor"] * seen["difference"],)

    transformer.forward = call
    try:
        return sampled("wan", pipe)
    finally:
        del transformer.forward


def test_cfg_cache_serves_separate_calls():
    """Wan: unconditional calls do not run; with one factor for both bands no transform is needed by hand."""
    pipe = entry("wan").build()
    skipped = {step for step in range(4, STEPS) if step % 3}
    by_hand = cfg_by_hand(pipe, skipped)
    policy, substitute = CFGCache(start_after=4 / STEPS, every=3), FromBranch(1.2, 1.2, 1.0, 0.0)
    calls: list[int] = []
    hook = pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with cachepolicies.enable(pipe, policy, substitute=substitute):
        ours = sampled("wan", pipe)
    hook.remove()
    assert len(calls) == 2 * STEPS - len(skipped)
    torch.testing.assert_close(ours, by_hand, atol=1e-5, rtol=1e-5)


CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
"""The first of these in a denoiser takes the latent; it has a row for each frame in CogVideoX."""

TOKENS = {"ltx": "proj_in", "qwen-image": "img_in"}
"""What takes the latent where it is called with tokens."""


def first_of(key: str, denoiser: nn.Module) -> nn.Module:
    """Return the module of a denoiser that takes the latent."""
    if key in TOKENS:
        return denoiser.get_submodule(TOKENS[key])
    return next(module for module in denoiser.modules() if isinstance(module, CONVOLUTIONS))


def as_flux(grid: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return ``(B, C, H, W)`` as FLUX's pipeline packs it, two tokens of a reference image behind; and what it says."""
    rows, channels, height, width = grid.shape
    tokens = diffusers.FluxPipeline._pack_latents(grid, rows, channels, height, width)
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(rows, height // 2, width // 2, CPU, torch.float32)
    beside = torch.cat([ids, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])])
    return torch.cat([tokens, tokens[:, :2]], 1), {"img_ids": beside}


def as_ltx(grid: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return ``(B, C, H, W)`` as LTX's pipeline packs a video, and what says so."""
    video = torch.stack([grid, 2.0 * grid], 2)
    given = {"num_frames": 2, "height": grid.shape[2], "width": grid.shape[3]}
    return diffusers.LTXPipeline._pack_latents(video), given


def as_kandinsky(grid: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return ``(B, C, H, W)`` as a video of Kandinsky 5, channels last."""
    return torch.stack([grid, 2.0 * grid], 1).movedim(2, -1), {}


@pytest.mark.parametrize(
    ("model", "pack"),
    [
        (diffusers.FluxTransformer2DModel, as_flux),
        (diffusers.LTXVideoTransformer3DModel, as_ltx),
        (diffusers.Kandinsky5Transformer3DModel, as_kandinsky),
    ],
    ids=["flux", "ltx", "kandinsky"],
)
def test_the_bands_are_those_of_the_grid_however_it_is_packed(model, pack):
    """As on the grid; tokens beside it are not scaled."""
    generator = torch.Generator().manual_seed(0)
    cond, uncond, now = (torch.randn(2, 4, 10, 12, generator=generator) for _ in range(3))
    levels = (900.0, 700.0, 500.0, 300.0, 100.0)
    substitute = FromBranch(low=1.5, low_until=1.0, high=0.5, high_from=0.0)

    def made(of: FromBranch, pack: Any, arguments: dict[str, Any]) -> Tensor:
        refresh = Refresh(pack(uncond), [900.0] * 2, [True] * 2, [1] * 2, branches={"cond": pack(cond)})
        context = Context(500.0, index=2, timesteps=levels, branches={"cond": pack(now)}, arguments=arguments)
        return of.predict(context, [refresh])

    network = model.__new__(model)
    nn.Module.__init__(network)
    knows = substitute.resolve(cachepolicies.Setup(adapter=adapter_of(network)))
    found = made(knows, lambda grid: pack(grid)[0], pack(now)[1])
    expected, _ = pack(made(substitute, lambda grid: grid, {}))
    if pack is as_flux:
        expected[:, -2:] = (pack(now)[0] + pack(uncond)[0] - pack(cond)[0])[:, -2:]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("key", ["wan-2.2", "sd3", "cogvideox", "dit", "sd", "ltx", "qwen-image"])
def test_cfg_cache_serves_real_pipelines(key):
    """Rows are counted inside: half of a step's are left out; plain where none are, and a second run is equal."""
    pipe = entry(key).build()
    left_out = ("uncond", "copy 2" if entry(key).doubled == "cond" else "copy 1")
    denoisers = [first_of(key, module) for module in entry(key).modules(pipe)]
    ran: list[int] = []
    bare = sampled(key, pipe)
    with cachepolicies.enable(pipe, CFGCache(every=1)):
        assert torch.equal(sampled(key, pipe), bare)
    hooks = [module.register_forward_hook(lambda module, args, out: ran.append(len(args[0]))) for module in denoisers]
    with cachepolicies.enable(pipe, CFGCache(start_after=4 / STEPS, every=3, branches=left_out)) as enabled:
        first = sampled(key, pipe)
        once = sum(ran)
        second = sampled(key, pipe)
        assert enabled.trace.cache_ratio > 0
    for hook in hooks:
        hook.remove()
    assert torch.equal(first, second)
    assert not torch.equal(first, bare)
    skipped = sum(step >= 4 and step % 3 > 0 for step in range(STEPS))
    rows = 2 if key == "cogvideox" else 1  # one for each frame
    assert sum(ran) == 2 * once == 2 * rows * (2 * STEPS - skipped)
    assert torch.equal(sampled(key, pipe), bare)


METHODS = {
    "adacache": (AdaCache(codebook=((1.0, 1),)), AdaCache(codebook=((1.0, 3),))),
    "fora": (FORA(every=1), FORA(every=2)),
    "pab": (PAB(spatial=1, temporal=1, cross=1), PAB(spatial=2, temporal=2, cross=3, window=(1, 990))),
    "delta-dit": (DeltaDiT(every=1, blocks=1), DeltaDiT(every=2, blocks=1)),
    "fastercache": (FasterCache(every=1), FasterCache()),
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
    if method in ("adacache", "fora", "pab", "fastercache"):
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


def mask_for(denoiser: nn.Module, held: dict[int, tuple[str, ...]]) -> LayerMask:
    """Return a mask that leaves out, in some pairs, the modules of some kinds."""
    layers = layers_of(denoiser, adapter_of(denoiser))
    computed = [
        [place for place, (_, kind) in layers.items() if kind not in held.get(pair, ())] for pair in range(STEPS // 2)
    ]
    return LayerMask(type(denoiser).__name__, STEPS, tuple(layers), computed)


@contextmanager
def held_by_hand(pipe: Any, mask: LayerMask) -> Iterator[None]:
    """Put in what modules returned at the last step that computed them, by torch's hooks, for each call of a step."""
    denoiser = pipe.transformer
    kept: dict[tuple[int, str], Any] = {}
    state: dict[str, Any] = {"t": None, "step": -1, "call": 0}

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        t = float(kwargs["timestep"].flatten()[0])
        same = t == state["t"]
        state.update(t=t, step=state["step"] + (not same), call=state["call"] + 1 if same else 0)

    def leave(place: str, output: Any) -> Any:
        pair, second = divmod(state["step"], 2)
        if second and place not in mask.computed[pair]:
            return kept[state["call"], place]
        kept[state["call"], place] = output
        return None

    hooks = [denoiser.register_forward_pre_hook(begin, with_kwargs=True)]
    for place, (module, _) in layers_of(denoiser, adapter_of(denoiser)).items():
        hooks.append(module.register_forward_hook(lambda module, args, output, place=place: leave(place, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("key", ["wan", "dit"])
def test_l2c_holds_in_real_pipelines_what_its_mask_leaves_out(key):
    """As torch's hooks do it, branch by branch; with everything computed it is the plain pipeline, bit for bit."""
    pipe = entry(key).build()
    bare = sampled(key, pipe)
    with cachepolicies.enable(pipe, L2C(mask_for(pipe.transformer, {}))) as enabled:
        assert not enabled.policy.reuses
        assert torch.equal(sampled(key, pipe), bare)
    mask = mask_for(pipe.transformer, {0: (MLP,), 2: (SPATIAL, TEMPORAL, CROSS), 3: (MLP, SPATIAL), 5: (SPATIAL,)})
    assert 0.0 < mask.share_computed < 1.0
    with held_by_hand(pipe, mask):
        by_hand = sampled(key, pipe)
    with cachepolicies.enable(pipe, L2C(mask)) as enabled:
        ours = sampled(key, pipe)
        trace = enabled.trace
        assert torch.equal(sampled(key, pipe), ours)
    assert torch.equal(ours, by_hand)
    assert not torch.equal(ours, bare)
    places = len(mask.places)
    for step in range(STEPS):
        reused = {record.place for record in trace.records if record.index == step and not all(record.evaluated)}
        assert reused == (set(mask.places) - set(mask.computed[step // 2]) if step % 2 else set()), step
    assert len({record.place for record in trace.records}) == places

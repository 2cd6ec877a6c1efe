"""Every method: what is computed at which step, counted at the modules, and the published settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from diffusers import LatteTransformer3DModel, UNet2DConditionModel
from torch import Tensor, nn

from cachepolicies import (
    CachedDenoiser,
    Context,
    InputError,
    NeedsError,
    RunError,
    SettingsError,
    enable,
)
from cachepolicies.adapters import CROSS, MLP, SPATIAL, TEMPORAL
from cachepolicies.testing import (
    Check,
    parametrize_with_checks,
    policy_checks,
    registered,
    site_checks,
    substitute_checks,
)
from cachepolicies_classics import (
    FORA,
    PAB,
    AdaCache,
    CFGCache,
    DeepCache,
    DeltaDiT,
    FasterCache,
    FromBranch,
    FrontAndRear,
    LastChange,
    plugin,
)
from cachepolicies_classics.deepcache import key_steps

STEPS = 12
TIMESTEPS = tuple(1000.0 - 80.0 * k for k in range(STEPS))


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's names."""
    with registered(plugin, "cachepolicies-classics"):
        yield


def latte() -> nn.Module:
    """Return a network that has all kinds of attention: two blocks over space, two over time."""
    torch.manual_seed(0)
    model: Any = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        video_length=2,
        norm_type="ada_norm_single",
        attention_bias=True,
    )
    return _still(model)


def unet() -> nn.Module:
    """Return a U-Net of two blocks with two layers each: six skip connections."""
    torch.manual_seed(0)
    model: Any = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return _still(model)


def _still(model: Any) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # some are made as zeros, and would hide what goes through them
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    found: nn.Module = model.requires_grad_(False).eval()
    return found


def sampled(model: Any, x: Tensor, text: Tensor, **given: Any) -> list[Tensor]:
    """Return the latents of a run."""
    latents = []
    for t, after in pairwise((*TIMESTEPS, 0.0)):
        out = model(x, timestep=torch.tensor([t]), encoder_hidden_states=text, return_dict=False, **given)[0]
        x = x + (after - t) / 1000 * out
        latents.append(x)
    return latents


def inputs(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a latent and a text."""
    generator = torch.Generator().manual_seed(2)
    shape = (1, 4, 2, 8, 8) if isinstance(network, LatteTransformer3DModel) else (1, 4, 8, 8)
    return torch.randn(shape, generator=generator), torch.randn(1, 5, 16, generator=generator)


def counted(network: nn.Module, modules: Mapping[str, nn.Module], policy: Any) -> dict[str, list[int]]:
    """Return the steps at which each module ran, in a run with a policy enabled."""
    ran: dict[str, list[int]] = {path: [] for path in modules}
    at = [-1]
    hooks = [network.register_forward_pre_hook(lambda *_: at.__setitem__(0, at[0] + 1))]
    for path, module in modules.items():
        hooks.append(module.register_forward_hook(lambda *_, path=path: ran[path].append(at[0])))
    with enable(network, policy, learn=False) as enabled, enabled.run(TIMESTEPS):
        sampled(network, *inputs(network))
    for hook in hooks:
        hook.remove()
    return ran


def of_kind(network: nn.Module) -> dict[str, str]:
    """Return the kind of every attention and MLP, by path."""
    cached = CachedDenoiser(network, "never", site="attention+mlp", x_name="hidden_states", t_name="timestep")
    return dict(cached.resolved_site.kinds)


METHODS = {
    "adacache": (AdaCache(codebook=((1.0, 1),)), AdaCache(codebook=((0.05, 4), (0.2, 3), (1.0, 2))), latte),
    "fora": (FORA(every=1), FORA(every=3), latte),
    "fastercache": (FasterCache(every=1), FasterCache(start_after=0.25, every=3), latte),
    "pab": (PAB(spatial=None, temporal=None, cross=None), PAB(mlp_blocks=1, mlp_timesteps=(600.0,)), latte),
    "delta-dit": (DeltaDiT(every=1, blocks=1), DeltaDiT(every=3, blocks=1), None),
    "deepcache": (DeepCache(interval=1), DeepCache(interval=3), unet),
}


def dit() -> nn.Module:
    """Return a network with one list of four blocks."""
    torch.manual_seed(0)
    model: Any = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=24,
        num_layers=4,
        rope_max_seq_len=32,
    )
    return _still(model)


def made(name: str) -> tuple[Any, Any, nn.Module, Tensor, Tensor]:
    """Return a method that reuses nothing, one that does, a network and what it is called with."""
    plain, reusing, build = METHODS[name]
    network = dit() if build is None else build()
    x, text = inputs(network)
    return plain, reusing, network, torch.randn(1, 4, 2, 8, 8) if build is None else x, text


ATTENTION = {"0.attn1": SPATIAL, "0.attn2": CROSS, "0.ff": MLP, "1.attn1": TEMPORAL}
PARTS = {"blocks[0:1]": "front", "blocks[1:2]": "front and rear", "blocks[2:3]": "rear"}


@parametrize_with_checks(
    [
        policy_checks(FORA()),
        policy_checks(AdaCache(), site=ATTENTION),
        policy_checks(AdaCache(codebook=((0.2, 4), (1.0, 2)), frames=3), site=ATTENTION, label="adacache-motion"),
        policy_checks(PAB(), site=ATTENTION),
        policy_checks(PAB(mlp_blocks=1, mlp_timesteps=(500.0,)), site=ATTENTION, label="pab-mlp"),
        policy_checks(DeltaDiT(), site=PARTS),
        policy_checks(FasterCache(start_after=0.0)),
        policy_checks(CFGCache(start_after=0.0, branches=("default", "copy 1", "uncond"))),
        policy_checks(DeepCache()),
        policy_checks(DeepCache(center=2.0, power=1.4), label="deepcache-keys"),
        site_checks(FrontAndRear(1)),
        substitute_checks(LastChange()),
        substitute_checks(LastChange(weight=0.9, rising=(0.2, 0.8)), label="last-change-rising"),
        substitute_checks(FromBranch(axes=1)),
    ]
)
def test_the_contracts(check: Check) -> None:
    """One line each."""
    check()


@pytest.mark.parametrize("name", METHODS)
def test_without_reuse_it_is_the_bare_model_and_a_second_run_is_the_first(name: str) -> None:
    """Bit for bit, in place and wrapped."""
    plain, reusing, network, x, text = made(name)
    bare = sampled(network, x, text)
    with enable(network, plain, learn=False) as enabled, enabled.run(TIMESTEPS):
        assert all(torch.equal(a, b) for a, b in zip(sampled(network, x, text), bare, strict=True))
    with enable(network, reusing, learn=False) as enabled:
        runs = []
        for _ in range(2):
            with enabled.run(TIMESTEPS) as run:
                runs.append(sampled(network, x, text))
                assert run.trace.work is not None
                assert run.trace.work < 0.95
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][-1], bare[-1])
    x_name = "sample" if name == "deepcache" else "hidden_states"
    wrapped = CachedDenoiser(network, reusing, x_name=x_name, t_name="timestep")
    with wrapped.run(timesteps=TIMESTEPS):
        assert all(torch.equal(a, b) for a, b in zip(sampled(wrapped, x, text), runs[0], strict=True))


def test_fora_counts_from_the_last_step() -> None:
    """Steps 0, 2, 5, 8, 11 of 12: the last is computed, and every third before it."""
    network = latte()
    kinds = of_kind(network)
    ran = counted(network, {path: network.get_submodule(path) for path in kinds}, FORA(every=3))
    assert set(kinds.values()) == {SPATIAL, TEMPORAL, CROSS, MLP}
    assert all(steps == [0, 2, 5, 8, 11] for steps in ran.values())


def test_fastercache_computes_a_first_part_and_then_every_nth_step() -> None:
    """A quarter of 12 steps, then steps 3, 6 and 9; the stand-in comes with the policy."""
    network = latte()
    kinds = [path for path, kind in of_kind(network).items() if kind != MLP]
    policy = FasterCache(start_after=0.25, every=3)
    ran = counted(network, {path: network.get_submodule(path) for path in kinds}, policy)
    assert all(steps == [0, 1, 2, 3, 6, 9] for steps in ran.values())
    assert CachedDenoiser(network, policy, x_name="hidden_states", t_name="timestep").substitute == LastChange()


class Guided(nn.Module):
    """A denoiser whose output depends on a condition, one number a sample; it counts the rows that it evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[float]] = []

    def forward(self, x: Tensor, t: Any, text: Tensor) -> Tensor:
        """Return something that is different at every t and place, for every condition."""
        self.rows.append(text.flatten().tolist())
        wave = torch.sin(x * (1.0 + float(t) / 500) + text.reshape(-1, 1, 1, 1))
        output: Tensor = wave + 0.1 * text.reshape(-1, 1, 1, 1) * x.roll(1, -1)
        return output


GUIDED_STEPS = (0, 1, 2, 3, 6, 9)
"""Of `TIMESTEPS`, those at which both branches are evaluated with the settings of the tests."""


def frames() -> Tensor:
    """Return two latents on a grid."""
    return torch.randn(2, 3, 10, 12, generator=torch.Generator().manual_seed(4))


def by_hand(low: float, high: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return conditional and unconditional outputs at every step of a guided run with CFG-Cache, with full spectra."""
    model, x = Guided(), frames()
    ones = torch.ones(len(x))
    row, column = torch.meshgrid(torch.arange(10) - 5, torch.arange(12) - 6, indexing="ij")
    band = (row**2 + column**2 <= (10 // 5) ** 2).float()

    def spectrum(values: Tensor) -> Tensor:
        shifted: Tensor = torch.fft.fftshift(torch.fft.fft2(values), dim=(-2, -1))
        return shifted

    conds, unconds = [], []
    difference_low = difference_high = torch.zeros(())
    for step, (t, after) in enumerate(pairwise((*TIMESTEPS, 0.0))):
        cond = model(x, t, ones)
        if step in GUIDED_STEPS:
            uncond = model(x, t, -ones)
            difference_low = spectrum(uncond - cond) * band
            difference_high = spectrum(uncond - cond) * (1 - band)
        else:
            difference_low = difference_low * (low if step < 8 else 1.0)
            difference_high = difference_high * (high if step >= 6 else 1.0)
            found = difference_low + spectrum(cond) * band + difference_high + spectrum(cond) * (1 - band)
            uncond = torch.fft.ifft2(torch.fft.ifftshift(found, dim=(-2, -1))).real
        conds.append(cond)
        unconds.append(uncond)
        x = x + (after - t) / 1000 * (uncond + 3.0 * (cond - uncond))
    return conds, unconds


CFG = CFGCache(start_after=0.25, every=3)


def guided(denoiser: Any, *, batched: bool = False, order: str = "cu") -> tuple[list[Tensor], list[Tensor]]:
    """Return conditional and unconditional outputs of the same run, with a wrapper."""
    x = frames()
    ones = torch.ones(len(x))
    conds, unconds = [], []
    with denoiser.run(timesteps=TIMESTEPS):
        for t, after in pairwise((*TIMESTEPS, 0.0)):
            if batched:
                uncond, cond = denoiser(torch.cat([x, x]), t, torch.cat([-ones, ones])).chunk(2)
            else:
                of = {"c": lambda x=x, t=t: denoiser(x, t, ones, branch="cond")}
                of["u"] = lambda x=x, t=t: denoiser(x, t, -ones, branch="uncond")
                made = {name: of[name]() for name in order}
                cond, uncond = made["c"], made["u"]
            conds.append(cond)
            unconds.append(uncond)
            x = x + (after - t) / 1000 * (uncond + 3.0 * (cond - uncond))
    return conds, unconds


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("low", "high"), [(1.1, 1.3), (1.0, 1.0), (1.2, 1.2)])
def test_cfg_cache_is_that_by_hand(batched: bool, low: float, high: float) -> None:
    """As separate calls, and as one batch of which one half is evaluated; factors compound over skipped steps."""
    model = Guided()
    substitute = FromBranch(low=low, high=high, low_until=8 / 12, high_from=6 / 12)
    denoiser = CachedDenoiser(model, CFG, substitute=substitute, cfg="batched" if batched else "separate")
    found, expected = guided(denoiser, batched=batched), by_hand(low, high)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    evaluated = [sum(rows) for rows in model.rows]
    both = len(GUIDED_STEPS)
    if batched:
        assert evaluated == [0.0 if step in GUIDED_STEPS else 2.0 for step in range(STEPS)]
        assert denoiser.nfe == (both + STEPS) / 2
    else:
        assert (evaluated.count(2.0), evaluated.count(-2.0)) == (STEPS, both)
        assert denoiser.nfe == both + STEPS
    assert denoiser.trace.work == pytest.approx((both + STEPS) / (2 * STEPS))


def test_cfg_cache_knows_branches_that_nobody_names() -> None:
    """In place the second that is called is ``"branch 2"``."""
    model, x, ones = Guided(), frames(), torch.ones(2, 1)
    policy = CFGCache(start_after=0.25, every=3, branches="branch 2")
    with enable(model, policy, substitute=FromBranch(low=1.0, high=1.0)) as enabled, enabled.run(TIMESTEPS) as run:
        found = [(model(x, t, ones), model(x, t, -ones)) for t in TIMESTEPS]
    assert run.nfe == STEPS + len(GUIDED_STEPS)
    (before, other), (now, ours) = found[3], found[5]  # steps 4 and 5 are left out
    torch.testing.assert_close(ours, now + other - before)


@pytest.mark.parametrize("batched", [False, True])
def test_cfg_cache_leaves_out_nothing_where_it_is_told_so(batched: bool) -> None:
    """Bit for bit; and the conditional branch is always the model's own."""
    denoiser = CachedDenoiser(Guided(), CFGCache(every=1), cfg="batched" if batched else "separate")
    plain = guided(denoiser, batched=batched)
    assert denoiser.nfe == (STEPS if batched else 2 * STEPS)
    bare = guided(CachedDenoiser(Guided(), "never", cfg="batched" if batched else "separate"), batched=batched)
    assert all(torch.equal(a, b) for one, two in zip(plain, bare, strict=True) for a, b in zip(one, two, strict=True))


def served(denoiser: Any, x: Tensor, **texts: Tensor) -> None:
    """Call the branches of these texts at every step of a run, in this order; without a name for ``batch``."""
    with denoiser.run(timesteps=TIMESTEPS):
        for t in TIMESTEPS:
            for name, text in texts.items():
                denoiser(x, t, text, **({} if name == "batch" else {"branch": name}))


def test_cfg_cache_says_what_it_takes() -> None:
    """The order of the branches, a grid, rows that can be cut, a site that can cut them, one other branch."""
    x, one = frames(), torch.ones(2)
    with pytest.raises(RunError, match=r"makes branch 'uncond' from another that was called before .* there is none"):
        served(CachedDenoiser(Guided(), CFG), x, uncond=-one, cond=one)
    exchanged = CachedDenoiser(Guided(), CFGCache(start_after=0.25, every=3, branches="cond"))
    served(exchanged, x, uncond=-one, cond=one)
    assert exchanged.nfe == STEPS + len(GUIDED_STEPS)
    flat = CachedDenoiser(lambda x, t, text: x * text[:, None], CFG)
    with pytest.raises(InputError, match=r"takes outputs \(B, C, ..., H, W\), got \(2, 4\)"):
        served(flat, torch.ones(2, 4), cond=one, uncond=-one)
    with pytest.raises(RunError, match="there is 'cond', 'third'"):
        served(CachedDenoiser(Guided(), CFG), x, cond=one, third=one / 2, uncond=-one)
    named = CachedDenoiser(Guided(), CFG, substitute=FromBranch(source="third"))
    served(named, x, cond=one, third=one / 2, uncond=-one)
    assert named.nfe == 2 * STEPS + len(GUIDED_STEPS)
    inside = CachedDenoiser(latte(), CFG, site="attention", cfg="batched", x_name="hidden_states", t_name="timestep")
    several = "decides for every guidance branch apart, and 2 of them are in one batch"
    with inside.run(timesteps=TIMESTEPS), pytest.raises(InputError, match=several):
        inside(torch.ones(2, 4, 2, 8, 8), torch.tensor([900.0] * 2))
    with pytest.raises(InputError, match="whose rows are in one batch here, and rows cannot be told apart: the denoi"):
        served(CachedDenoiser(lambda x, t, text: (x, torch.zeros(3)), CFG, cfg="batched"), x, batch=one)


def test_the_weight_of_the_last_change_rises_with_the_step() -> None:
    """As Open-Sora's: 0.9 (i - 7) / 20 of 30 steps."""
    substitute = LastChange(weight=0.9, rising=(7 / 30, 27 / 30))
    levels = tuple(float(1000 - 30 * step) for step in range(30))
    for step in (0, 7, 8, 17, 29):
        found = substitute.weight_at(Context(levels[step], index=step, timesteps=levels))
        assert found == pytest.approx(max(0.0, 0.9 * (step - 7) / 20))
    with pytest.raises(NeedsError, match="needs its timesteps"):
        substitute.weight_at(Context(500.0))
    for wrong in ({"weight": -1.0}, {"rising": (0.5, 0.2)}, {"rising": (0.5,)}):
        with pytest.raises(SettingsError, match="last-change:"):
            LastChange(**wrong)


def test_cfg_cache_and_fastercache_go_together() -> None:
    """In a loop of one's own: the network with one enabled, and the other around it."""
    network: Any = latte()
    x, text = inputs(network)
    attention = network.get_submodule("transformer_blocks.0.attn1")
    ran: list[int] = []
    hook = attention.register_forward_hook(lambda *_: ran.append(1))
    inner = enable(network, FasterCache(start_after=0.25, every=3), branches="independent")
    with inner as enabled, enabled.run(TIMESTEPS):
        outer = CachedDenoiser(network, CFGCache(start_after=0.25, every=4), x_name="hidden_states", t_name="timestep")
        with outer.run(timesteps=TIMESTEPS):
            for t in TIMESTEPS:
                for name, sign in (("cond", 1.0), ("uncond", -1.0)):
                    with network.cache_context(name):
                        outer(x, torch.tensor([t]), encoder_hidden_states=sign * text, return_dict=False, branch=name)
    hook.remove()
    assert outer.nfe == STEPS + 5  # steps 0, 1, 2, 4, 8
    # cond: steps 0, 1, 2, 3, 6, 9; uncond is called at steps 0, 1, 2, 4, 8, and extrapolates at the last two
    assert len(ran) == 6 + 3


def test_pab_has_an_interval_a_kind_and_a_window() -> None:
    """The window holds timesteps 760 to 120: steps 3 to 11. The MLPs of the first block are held behind step 5."""
    network = latte()
    kinds = of_kind(network)
    policy = PAB(spatial=2, temporal=3, cross=6, window=(100, 800), mlp_blocks=1, mlp_timesteps=(610.0,))
    ran = counted(network, {path: network.get_submodule(path) for path in kinds}, policy)
    inside = [step for step, t in enumerate(TIMESTEPS) if 100 < t < 800]
    for path, kind in kinds.items():
        if kind == MLP:
            held = [6, 7] if path == "transformer_blocks.0.ff" else []
        else:
            interval = {SPATIAL: 2, TEMPORAL: 3, CROSS: 6}[kind]
            held = [step for step in inside if step % interval]
        assert ran[path] == [step for step in range(STEPS) if step not in held], path


@pytest.mark.parametrize("frames", [None, 2])
def test_adacache_holds_as_long_as_the_codebook_says(frames: int | None) -> None:
    """The temporal attention of the last of two blocks is compared, at computed steps, with its last output."""
    network = latte()
    probe = network.get_submodule("temporal_transformer_blocks.1.attn1")
    outputs: dict[int, Tensor] = {}
    at = [-1]
    hooks = [network.register_forward_pre_hook(lambda *_: at.__setitem__(0, at[0] + 1))]
    hooks.append(probe.register_forward_hook(lambda module, args, out: outputs.__setitem__(at[0], out.clone())))
    book = ((0.02, 5), (0.05, 4), (0.1, 3), (0.3, 2), (1.0, 1))
    policy = AdaCache(codebook=book, frames=frames, motion=(0.0, 1.0))
    with enable(network, policy, learn=False) as enabled, enabled.run(TIMESTEPS):
        sampled(network, *inputs(network))
    for hook in hooks:
        hook.remove()
    due, last, before = 0, None, None
    for step in range(STEPS):
        computed = step < 2 or step >= STEPS - 2 or step >= due
        assert (step in outputs) == computed, step
        if not computed:
            continue
        motion = None
        if frames is not None:  # one sample: its rows of the output are its places, and one after the other
            films = outputs[step].flatten().reshape(frames, -1)
            motion = float((films[1] - films[0]).abs().sum() / (films[1].abs().sum() + films[0].abs().sum()))
            motion = (motion / 0.385) ** 8
        if last is None:
            due = step + 1
        else:
            then = outputs[last]
            c = float((outputs[step] - then).abs().sum() / then.abs().sum()) / (step - last)
            if motion is not None and before is not None:
                c *= motion + abs(10 * (motion - before) / (step - last))
            due = step + next((n for limit, n in book if c < limit), 1)
        last, before = step, motion
    assert 4 < len(outputs) < STEPS


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_delta_dit_holds_the_rear_and_then_the_front(blocks: int) -> None:
    """Of four blocks; with three held, the two in the middle belong to both parts."""
    network = dit()
    modules = {str(i): network.get_submodule(f"blocks.{i}") for i in range(4)}
    x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    ran: dict[str, list[int]] = {path: [] for path in modules}
    at = [-1]
    network.register_forward_pre_hook(lambda *_: at.__setitem__(0, at[0] + 1))
    for path, module in modules.items():
        module.register_forward_hook(lambda *_, path=path: ran[path].append(at[0]))
    policy = DeltaDiT(every=3, outline=0.5, blocks=blocks)
    with enable(network, policy, learn=False) as enabled, enabled.run(TIMESTEPS):
        sampled(network, x, inputs(network)[1])
    for block in range(4):
        front, rear = block < blocks, block >= 4 - blocks
        held = [step for step in range(STEPS) if step % 3 and (rear if step < 6 else front)]
        assert ran[str(block)] == [step for step in range(STEPS) if step not in held], block


@pytest.mark.parametrize("branch", range(6))
def test_deepcache_computes_what_is_above_the_branch(branch: int) -> None:
    """The middle block runs at key steps only, the first convolution at all."""
    network = unet()
    watched = {"mid_block": network.get_submodule("mid_block"), "conv_in": network.get_submodule("conv_in")}
    ran = counted(network, watched, DeepCache(interval=4, branch=branch))
    assert ran == {"mid_block": [0, 4, 8], "conv_in": list(range(STEPS))}


def test_key_steps_lie_dense_around_the_center() -> None:
    """Ten of fifty, around step 15."""
    found = key_steps(50, 10, 15.0, 1.4)
    assert len(found) == 10
    assert found[0] == 0
    gaps = {(key, after): after - key for key, after in pairwise((*found, 50))}
    narrowest, widest = min(gaps, key=lambda gap: gaps[gap]), max(gaps, key=lambda gap: gaps[gap])
    assert narrowest[0] <= 15 <= narrowest[1]
    assert widest[1] == 50
    with pytest.raises(SettingsError, match=r"center=-400, power=1.2 give no 40 distinct key steps of 40"):
        key_steps(40, 40, -400.0, 1.2)


def test_the_window_is_in_timesteps_whatever_the_model_is_called_with() -> None:
    """FLUX is called with t / 1000."""
    from cachepolicies import Adapter, Setup
    from cachepolicies.adapters import Blocks

    for clock, t in (("timestep", 700.0), ("unit", 0.7), ("reversed-unit", 0.3)):
        adapter = Adapter("Some", (Blocks("blocks"),), clock=clock)  # type: ignore[arg-type]
        assert PAB().resolve(Setup(adapter=adapter)).timestep(t) == pytest.approx(700.0)


def test_what_does_not_fit_is_refused() -> None:
    """A site without kinds, one without front and rear, and settings out of range."""
    network = dit()
    with pytest.raises(NeedsError, match="decides by the kind of attention, and site 'blocks' does not say"):
        enable(network, PAB(), site="blocks")
    with pytest.raises(NeedsError, match="front and the rear of the block stack, and site 'blocks' does not"):
        enable(network, DeltaDiT(), site="blocks")
    with pytest.raises(SettingsError, match="blocks is 4, and a WanTransformer3DModel has 4"):
        enable(network, DeltaDiT(blocks=4))
    with pytest.raises(NeedsError, match="compares the outputs of an attention, and site 'mlp' has none"):
        enable(network, AdaCache(), site="mlp")
    with pytest.raises(SettingsError, match="block is 9, and 4 blocks have an attention"):
        enable(network, AdaCache(block=9))
    with pytest.raises(SettingsError, match="codebook is"):
        AdaCache(codebook=((0.2, 3), (0.1, 2)))
    with pytest.raises(SettingsError, match="window is"):
        PAB(window=(800, 100))
    with pytest.raises(SettingsError, match=r"skip-branch.*cuts U-Nets"):
        enable(network, DeepCache())

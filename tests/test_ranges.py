"""Sites at ranges of the block stack: reuse against a computation by hand, ranges side by side, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from cachepolicies import CachedDenoiser, SettingsError
from cachepolicies.adapters import Adapter, Blocks, adapter_of, blocks_of
from cachepolicies.sites import as_site, range_of
from cachepolicies.sites.ranges import BlockRange
from scripted import Scripted
from tiny_models import TINY, declared, first_tensor, level, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*has too few to gain much")  # runs of two steps

REFUSED = {"UNet2DConditionModel"}
"""Down blocks pass on skip connections too."""


def within_a_list(network: nn.Module) -> list[tuple[int, int]]:
    """Return ranges that stay within one list of blocks: of each the last two, or all of a shorter one."""
    starts: dict[str, list[int]] = {}
    for number, (_, blocks) in enumerate(blocks_of(network, adapter_of(network)).values()):
        starts.setdefault(blocks.path, []).append(number)
    if adapter_of(network).take_turns:
        return [(1, 2), (2, 3)]
    return [(numbers[-2:][0], numbers[-1] + 1) for numbers in starts.values()]


def held_by_hand(network: nn.Module, ranges: list[tuple[int, int]], first: Any, later: Any) -> torch.Tensor:
    """Return the output of the later call with the ranges' residuals of the first, by torch's own hooks."""
    adapter, kept, residuals = adapter_of(network), {}, {}

    def names(place: tuple[int, int]) -> tuple[str, ...]:
        return range_of(network, adapter, *place).streams

    def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    def hooks(reuse: bool) -> list[Any]:
        placed = []
        for place in ranges:
            blocks = list(range_of(network, adapter, *place).blocks.values())

            def enter(module: nn.Module, args: Any, kwargs: Any, place: Any = place) -> None:
                given = arguments(module, args, kwargs)
                kept[place] = [
                    given[name].clone() if torch.is_tensor(given.get(name)) else None for name in names(place)
                ]

            def leave(module: nn.Module, args: Any, output: Any, place: Any = place) -> Any:
                streams = [output] if isinstance(output, torch.Tensor) else list(output)
                pairs = list(zip(streams, kept[place], strict=True))
                if not reuse:
                    residuals[place] = [
                        None if left is None or entered is None else left - entered for left, entered in pairs
                    ]
                    return None
                held = [
                    None if by is None else entered + by
                    for (_, entered), by in zip(pairs, residuals[place], strict=True)
                ]
                return held[0] if isinstance(output, torch.Tensor) else tuple(held)

            placed.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
            placed.append(blocks[-1].register_forward_hook(leave))
        return placed

    outputs = []
    for reuse, given in ((False, first), (True, later)):
        placed = hooks(reuse)
        outputs.append(first_tensor(network(**given)))
        for hook in placed:
            hook.remove()
    return outputs[1]


@pytest.mark.parametrize("key", [key for key in TINY if key not in REFUSED])
def test_ranges_are_held_as_by_hand(key):
    tiny = TINY[key]
    network = tiny.build()
    first, later = tiny.inputs(2), moved(tiny, tiny.inputs(2))
    ranges = within_a_list(network)
    by_hand = held_by_hand(network, ranges, first, later)
    plain = [first_tensor(network(**each)) for each in (first, later)]

    def outputs(script: dict[float, bool]) -> list[torch.Tensor]:
        site = "+".join(f"blocks[{start}:{stop}]" for start, stop in ranges)
        cached = CachedDenoiser(network, Scripted(script), site=site, x_name=tiny.x_name, t_name=tiny.t_name)
        with cached.run(declared(tiny, first, later)):
            found = [first_tensor(cached(**each)) for each in (first, later)]
        assert len(cached.trace.places) == len(ranges)
        return found

    reused = outputs({level(tiny, first): False, level(tiny, later): True})
    assert torch.equal(reused[0], plain[0])
    assert torch.equal(reused[1], by_hand)
    assert not torch.equal(reused[1], plain[1])
    assert all(torch.equal(a, b) for a, b in zip(outputs({}), plain, strict=True))


def test_the_whole_range_is_the_block_stack_and_two_halves_are_nearly():
    """Residuals of two halves that were refreshed at one call add up to that of the whole, but for rounding."""
    tiny = TINY["WanTransformer3DModel"]
    network = tiny.build()
    first, later = tiny.inputs(2), moved(tiny, tiny.inputs(2))

    def reused(site: str) -> torch.Tensor:
        script = {level(tiny, first): False, level(tiny, later): True}
        cached = CachedDenoiser(network, Scripted(script), site=site)
        with cached.run(declared(tiny, first, later)):
            cached(**first)
            return first_tensor(cached(**later))

    assert torch.equal(reused("blocks[:]"), reused("blocks"))
    torch.testing.assert_close(reused("blocks[:1]+blocks[1:]"), reused("blocks"))


def test_an_audit_of_a_range_runs_its_blocks_once_and_changes_nothing():
    tiny = TINY["WanTransformer3DModel"]
    network = tiny.build()
    first, later = tiny.inputs(2), moved(tiny, tiny.inputs(2))
    ran: list[int] = []
    network.get_submodule("blocks.1").register_forward_hook(lambda *_: ran.append(1))

    def reused(audit: float) -> tuple[torch.Tensor, Any]:
        script = {level(tiny, first): False, level(tiny, later): True}
        cached = CachedDenoiser(network, Scripted(script), site="blocks[1:]", audit=audit)
        with cached.run(declared(tiny, first, later)):
            cached(**first)
            return first_tensor(cached(**later)), cached.trace

    plain, _ = reused(0.0)
    ran.clear()
    audited, trace = reused(1.0)
    assert torch.equal(plain, audited)
    assert len(ran) == 2
    assert trace.records[-1].audit.true_error[0] > 0


def test_after_an_error_inside_a_range_nothing_is_bypassed():
    tiny = TINY["WanTransformer3DModel"]
    network = tiny.build()
    first, later = tiny.inputs(1), moved(tiny, tiny.inputs(1))
    cached = CachedDenoiser(network, Scripted({level(tiny, later): True}), site="blocks[:2]")
    hook = network.get_submodule("blocks.2").register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(OSError("out of reach"))
    )
    with cached.run(declared(tiny, first, later)):
        with pytest.raises(OSError, match="out of reach"):
            cached(**first)
        hook.remove()
        assert torch.equal(first_tensor(cached(**first)), first_tensor(network(**first)))
    assert torch.equal(first_tensor(network(**later)), first_tensor(tiny.build()(**later)))


@pytest.mark.parametrize(
    ("key", "site", "message"),
    [
        ("WanTransformer3DModel", "blocks[3:]", r"has 3 blocks, and none of them is in this range"),
        ("WanTransformer3DModel", "blocks[:2]+blocks[1:]", r"blocks\[:2\] and blocks\[1:\] have the block 'blocks.1'"),
        ("Flux2Transformer2DModel", "blocks[:]", r"transformer_blocks, single_transformer_blocks pass on different"),
        ("LatteTransformer3DModel", "blocks[:2]", r"take turns in a LatteTransformer3DModel"),
        ("UNet2DConditionModel", "blocks[:1]", r"down_blocks pass on more than the streams"),
        ("WanTransformer3DModel", "blocks[:1]+mlp", r"'blocks\[:1\]' cannot be joined with the others"),
    ],
)
def test_what_is_no_range_is_named(key, site, message):
    with pytest.raises(SettingsError, match=message):
        CachedDenoiser(TINY[key].build(), Scripted({}), site=site, x_name=TINY[key].x_name)


def test_how_a_range_is_written():
    assert as_site("blocks[2:-1]") == BlockRange(2, -1)
    assert as_site(" blocks[ : 3 ] ") == BlockRange(None, 3)
    assert as_site("block-range:start=1") == BlockRange(1)


def test_lists_that_take_turns_are_equally_long():
    network = nn.Module()
    network.a, network.b = nn.ModuleList([nn.Identity()]), nn.ModuleList([nn.Identity(), nn.Identity()])
    adapter = Adapter("Turns", [Blocks("a", "input"), Blocks("b", "input")], "input", take_turns=True)
    with pytest.raises(SettingsError, match=r"a has 1, b has 2"):
        blocks_of(network, adapter)

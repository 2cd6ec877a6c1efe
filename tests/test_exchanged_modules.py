"""Modules that are exchanged after set-up: LoRA, compiled blocks; the sites inside find them where they are now."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from peft import LoraConfig
from torch import nn

from cachepolicies import CachedDenoiser, SettingsError
from cachepolicies.cli._candidates import _check_site
from cachepolicies.kit import write_package
from cachepolicies.sites import as_site
from other_models import OTHERS
from scripted import Scripted
from tiny_models import TINY, declared, first_tensor, level, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*has too few to gain much")  # runs of two steps

FLUX = next(tiny for name, tiny in TINY.items() if name.startswith("FluxTransformer2DModel"))
SITES = ["mlp", "attention+mlp", "single_transformer_blocks.*.proj_mlp", "blocks[1:]", "blocks[:1]+blocks[1:]"]


def served(network: nn.Module, site: str) -> Any:
    """Return a wrapper that reuses the second of two calls."""
    first, later = FLUX.inputs(1), moved(FLUX, FLUX.inputs(1))
    script = {level(FLUX, first): False, level(FLUX, later): True}
    return CachedDenoiser(network, Scripted(script), site=site)


def run(cached: Any) -> tuple[torch.Tensor, Any]:
    """Return the second output of a run, and the trace."""
    first, later = FLUX.inputs(1), moved(FLUX, FLUX.inputs(1))
    with cached.run(declared(FLUX, first, later)):
        cached(**first)
        output = first_tensor(cached(**later))
    return output, cached.trace


def with_lora(network: Any) -> None:
    """Wrap the projections of all blocks."""
    torch.manual_seed(4)
    network.add_adapter(LoraConfig(r=2, target_modules=["proj_mlp", "to_q"], init_lora_weights=False))


@pytest.mark.parametrize("site", SITES)
def test_lora_that_is_loaded_and_unloaded_is_followed(site):
    network: Any = FLUX.build()
    cached = served(network, site)
    plain, before = run(cached)
    with_lora(network)
    wrapped, trace = run(cached)
    afresh, other = run(served(network, site))
    assert torch.equal(wrapped, afresh)
    assert trace.places == other.places == before.places
    assert trace.work == pytest.approx(other.work, rel=0.01)  # what LoRA itself adds is not measured again
    assert not torch.equal(wrapped, plain)
    network.unload_lora()
    again, trace = run(cached)
    assert torch.equal(again, plain)
    assert trace.places == before.places


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_blocks_that_were_exchanged_for_compiled_ones_are_looked_through(site, before):
    network: Any = FLUX.build()
    plain, trace = run(served(network, site))

    def compile_blocks() -> None:
        for blocks in (network.transformer_blocks, network.single_transformer_blocks):
            for number, block in enumerate(blocks):
                blocks[number] = torch.compile(block, backend="eager")

    if before:
        compile_blocks()
    cached = served(network, site)
    if not before:
        compile_blocks()
    compiled, other = run(cached)
    torch.testing.assert_close(compiled, plain)
    assert other.places == trace.places


def test_the_block_in_front_of_a_range_is_followed_too():
    """The first block of the stack belongs to no range; the signals of the range are taken there."""
    network: Any = FLUX.build()
    first = FLUX.inputs(1)
    site: Any = served(network, "blocks[1:]").resolved_site
    before = site.ranges["blocks[1:]"].behind
    network.transformer_blocks[0] = torch.compile(network.transformer_blocks[0], backend="eager")
    cached = served(network, "blocks[1:]")
    network.transformer_blocks[0] = before
    with cached.run(declared(FLUX, first)):
        cached(**first)
    assert cached.resolved_site.ranges["blocks[1:]"].behind is before


def test_the_second_call_alone_can_be_a_place():
    tiny = TINY["CogView4Transformer2DModel"]
    network = tiny.build()
    first, later = tiny.inputs(1), moved(tiny, tiny.inputs(1))
    script = {level(tiny, first): False, level(tiny, later): True}
    ran: list[int] = []
    network.get_submodule("transformer_blocks.0.ff").register_forward_hook(lambda *_: ran.append(1))
    cached = CachedDenoiser(network, Scripted(script), site="transformer_blocks.*.ff#2")
    with cached.run(declared(tiny, first, later)):
        cached(**first)
        cached(**later)
    assert len(ran) == 3
    for number in ("", "x", "0", "1"):
        with pytest.raises(SettingsError, match="stands the number of a call, from 2"):
            CachedDenoiser(network, Scripted({}), site=f"transformer_blocks.*.ff#{number}")


def test_u_nets_with_another_way_of_passing_skip_connections_are_refused():
    tiny = OTHERS["UNet1DModel"]()
    with pytest.raises(SettingsError, match=r"1D\w*, which passes its skip connections on in a way"):
        CachedDenoiser(tiny.build(), Scripted({}), site="skip-branch", x_name=tiny.x_name, t_name=tiny.t_name)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("SkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "SkipUpBlock2D"),
        layers_per_block=1,
    )
    with pytest.raises(SettingsError, match="is a SkipDownBlock2D"):
        CachedDenoiser(network, Scripted({}), site="skip-branch", x_name="sample", t_name="timestep")


@pytest.mark.parametrize("spec", ["block-range:start=a", "block-range:start=1.5", "block-range:stop=true"])
def test_a_range_has_whole_numbers(spec):
    with pytest.raises(SettingsError, match="is the number of a block"):
        as_site(spec)


def test_a_range_twice_is_refused():
    network = TINY["WanTransformer3DModel"].build()
    with pytest.raises(SettingsError, match=r"have the block 'blocks.1' in common"):
        CachedDenoiser(network, Scripted({}), site="blocks[1:2]+blocks[1:2]")


@pytest.mark.parametrize(
    "site", ["attention+mlp", "blocks[1:]", "blocks.*.attn1", "blocks.0.ffn", "module:path=blocks.1"]
)
def test_a_comparison_takes_every_site(site):
    _check_site(site)


@pytest.mark.parametrize("site", ["attntion", "attention+mpl"])
def test_a_comparison_names_an_unknown_site(site):
    with pytest.raises(SettingsError, match="unknown site"):
        _check_site(site)


@pytest.mark.parametrize("name", ["class", "import", "none", "true", "plugin"])
def test_the_kit_takes_no_name_that_python_has(tmp_path, name):
    with pytest.raises(SettingsError, match="can be called so"):
        write_package(name, "policy", tmp_path)

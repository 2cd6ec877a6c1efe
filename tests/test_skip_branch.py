"""The site below a skip connection of a U-Net: what runs, and reuse against a computation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cachepolicies import CachedDenoiser, SettingsError
from cachepolicies.sites.skip_branch import below_branch
from making_models import TinyModel
from other_models import OTHERS
from scripted import Scripted
from tiny_models import TINY, declared, first_tensor, level, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*has too few to gain much")  # runs of two steps

UNETS = {
    "UNet2DConditionModel": TINY["UNet2DConditionModel"],
    **{name: make() for name, make in OTHERS.items() if name.startswith("UNet") and name != "UNet1DModel"},
}


def branches(network: nn.Module) -> int:
    """Return how many skip connections a U-Net has: one for each layer of its way up."""
    return sum(len(block.resnets) for block in network.up_blocks)  # type: ignore[union-attr,misc]


CASES = [(key, branch) for key in UNETS for branch in range(branches(UNETS[key].build()))]


def serving(tiny: TinyModel, network: nn.Module, branch: int, script: dict[float, Any], **given: Any) -> Any:
    """Return a wrapper that cuts below a branch."""
    site = f"skip-branch:branch={branch}"
    return CachedDenoiser(network, Scripted(script), site=site, x_name=tiny.x_name, t_name=tiny.t_name, **given)


@pytest.mark.parametrize(("key", "branch"), CASES)
def test_what_comes_from_below_is_held_as_by_hand(key, branch):
    """Only the last module below the branch is heard above it: by hand its output is replaced, and all else runs."""
    tiny = UNETS[key]
    network = tiny.build()
    first, later = tiny.inputs(2), moved(tiny, tiny.inputs(2))
    below = below_branch(network, branch).modules
    last = list(below.values())[-1]
    plain = [first_tensor(network(**each)) for each in (first, later)]
    kept: list[Any] = []
    hook = last.register_forward_hook(lambda module, args, output: kept.append(output))
    network(**first)
    hook.remove()
    hook = last.register_forward_hook(lambda module, args, output: kept[0])
    by_hand = first_tensor(network(**later))
    hook.remove()

    ran: list[nn.Module] = []
    for module in below.values():
        module.register_forward_hook(lambda module, args, output: ran.append(module))
    script = {level(tiny, first): False, level(tiny, later): True}
    cached = serving(tiny, network, branch, script, per_sample=False)
    with cached.run(declared(tiny, first, later)):
        assert torch.equal(first_tensor(cached(**first)), plain[0])
        assert ran == list(below.values()), "the modules below do not run in the order in which they are named"
        assert torch.equal(first_tensor(cached(**later)), by_hand)
        assert len(ran) == len(below)
    assert not torch.equal(by_hand, plain[1])


def test_the_deeper_the_branch_the_less_is_saved():
    tiny = UNETS["UNet2DConditionModel"]
    network = tiny.build()
    first, later = tiny.inputs(1), moved(tiny, tiny.inputs(1))
    work = []
    for branch in range(4):
        cached = serving(tiny, network, branch, {level(tiny, first): False, level(tiny, later): True})
        with cached.run(declared(tiny, first, later)):
            cached(**first)
            cached(**later)
        work.append(cached.trace.work)
    assert 0.5 < work[0] < work[1] < work[2] < work[3] < 1.0


def test_samples_below_a_branch_decide_apart():
    tiny = UNETS["UNet2DConditionModel"]
    network = tiny.build()
    first, later = tiny.inputs(3), moved(tiny, tiny.inputs(3))
    script = {level(tiny, first): False, level(tiny, later): (True, False, True)}
    cached = serving(tiny, network, 1, script)
    with cached.run(declared(tiny, first, later)):
        cached(**first)
        together = first_tensor(cached(**later))
    for row in range(3):
        alone = serving(tiny, network, 1, {level(tiny, later): row != 1})
        with alone.run(declared(tiny, first, later)):
            alone(**tiny.rows(first, [row]))
            one = first_tensor(alone(**tiny.rows(later, [row])))
        torch.testing.assert_close(together[row : row + 1], one)


def test_the_features_of_a_controlnet_are_taken_where_something_runs():
    """They are added to every skip connection, those below the branch too, whose modules do not run."""
    tiny = UNETS["UNet2DConditionModel"]
    network = tiny.build()
    first, later = tiny.inputs(1), moved(tiny, tiny.inputs(1))
    skips: list[torch.Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        skips.extend(output[1])

    hooks = [block.register_forward_hook(note) for block in network.down_blocks]  # type: ignore[union-attr]
    mid: list[torch.Tensor] = []
    hooks.append(network.get_submodule("mid_block").register_forward_hook(lambda m, a, o: mid.append(o)))
    stem: list[torch.Tensor] = []
    hooks.append(network.get_submodule("conv_in").register_forward_hook(lambda m, a, o: stem.append(o)))
    network(**first)
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(5)
    features = [0.1 * torch.randn(skip.shape, generator=generator) for skip in (*stem, *skips)]
    control = {"down_block_additional_residuals": features, "mid_block_additional_residual": 0.1 * mid[0]}
    cached = serving(tiny, network, 0, {level(tiny, first): False, level(tiny, later): True})
    with cached.run(declared(tiny, first, later)):
        assert torch.equal(first_tensor(cached(**first, **control)), first_tensor(network(**first, **control)))
        with_features = first_tensor(cached(**later, **control))
    kept: list[Any] = []
    last = list(below_branch(network, 0).modules.values())[-1]
    hook = last.register_forward_hook(lambda module, args, output: kept.append(output))
    network(**first, **control)
    hook.remove()
    hook = last.register_forward_hook(lambda module, args, output: kept[0])
    assert torch.equal(with_features, first_tensor(network(**later, **control)))
    hook.remove()


@pytest.mark.parametrize(
    ("key", "branch", "message"),
    [
        ("UNet2DConditionModel", 4, r"branch is 4, and UNet2DConditionModel has 4, from 0"),
        ("WanTransformer3DModel", 0, r"cuts U-Nets with down_blocks, mid_block and up_blocks, and WanTransformer3D"),
    ],
)
def test_what_has_no_such_connection_is_refused(key, branch, message):
    tiny = TINY[key]
    with pytest.raises(SettingsError, match=message):
        serving(tiny, tiny.build(), branch, {})

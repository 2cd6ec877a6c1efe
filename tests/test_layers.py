"""Sites at whole kinds of modules: which modules each class has, equality, and reuse against a computation by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cachepolicies import CachedDenoiser, CachePolicy, Decision, SettingsError
from cachepolicies.adapters import CROSS, MLP, SPATIAL, TEMPORAL, adapter_of
from cachepolicies.contracts import Reason
from cachepolicies.sites import layers_of
from scripted import Scripted
from tiny_models import TINY, declared, first_tensor, level, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*has too few to gain much")  # runs of two steps

KINDS = (SPATIAL, TEMPORAL, CROSS, MLP)


class Why(Reason):
    """Why a place is evaluated or held."""

    SCRIPT = "as the test says"


class HoldsKind(CachePolicy):
    """Holds every place at every step after the first."""

    name = "holds"

    @property
    def grain(self) -> Any:
        """Place by place."""
        return "place"

    def start(self, run: Any) -> bool:
        """Return whether something is remembered: not yet."""
        return False

    def decide(self, step: Any, state: bool) -> Decision:
        """Hold where something is remembered."""
        return Decision.same(state, Why.SCRIPT, step.run.decisions)

    def observe(self, step: Any, decision: Decision, output: Any, state: bool) -> bool:
        """Return that something is."""
        return True


def of_kind(network: nn.Module, *kinds: str) -> dict[str, nn.Module]:
    """Return the modules of these kinds by path."""
    return {path: module for path, (module, kind) in layers_of(network, adapter_of(network)).items() if kind in kinds}


@pytest.mark.parametrize("key", TINY)
def test_every_kind_that_an_adapter_names_is_there(key):
    network = TINY[key].build()
    adapter = adapter_of(network)
    found = layers_of(network, adapter)
    named = {kind for blocks in adapter.stack for kind in blocks.kinds}
    assert {SPATIAL, MLP} <= named | ({MLP} if SPATIAL not in named else set())
    assert {kind for _, kind in found.values()} == named
    assert set(named) <= set(KINDS)


@pytest.mark.parametrize("key", TINY)
def test_every_module_of_a_kind_is_held_as_by_hand(key):
    """What the modules returned at the first call is put in their place at the second, by torch's own hooks."""
    tiny = TINY[key]
    network = tiny.build()
    chosen = of_kind(network, *KINDS)
    first, inputs = tiny.inputs(2), moved(tiny, tiny.inputs(2))

    kept: dict[nn.Module, list[Any]] = {module: [] for module in chosen.values()}

    def take(module: nn.Module, args: Any, output: Any) -> None:
        kept[module].append(output)

    def put(module: nn.Module, args: Any, output: Any) -> Any:
        return kept[module].pop(0)

    hooks = [module.register_forward_hook(take) for module in kept]
    plain = first_tensor(network(**first))
    for hook in hooks:
        hook.remove()
    reached = sum(len(outputs) for outputs in kept.values())
    hooks = [module.register_forward_hook(put) for module in kept]
    by_hand = first_tensor(network(**inputs))
    for hook in hooks:
        hook.remove()
    untouched = first_tensor(network(**inputs))

    site = (
        "attention+mlp" if any(kind != MLP for _, kind in layers_of(network, adapter_of(network)).values()) else "mlp"
    )
    cached = CachedDenoiser(network, HoldsKind(), site=site, x_name=tiny.x_name, t_name=tiny.t_name)
    with cached.run(declared(tiny, first, inputs)):
        assert torch.equal(first_tensor(cached(**first)), plain)
        assert torch.equal(first_tensor(cached(**inputs)), by_hand)
    assert not torch.equal(by_hand, untouched)
    assert set(cached.trace.places) <= set(chosen)
    assert len(cached.trace.places) == reached


@pytest.mark.parametrize("key", ["WanTransformer3DModel", "FluxTransformer2DModel", "LatteTransformer3DModel"])
def test_a_kind_alone_and_a_pattern_for_it_are_the_same(key):
    tiny = next(tiny for name, tiny in TINY.items() if name.startswith(key))
    network = tiny.build()
    first, later = tiny.inputs(1), moved(tiny, tiny.inputs(1))
    script = {level(tiny, first): False, level(tiny, later): True}

    def outputs(site: str) -> list[torch.Tensor]:
        cached = CachedDenoiser(network, Scripted(script), site=site, x_name=tiny.x_name, t_name=tiny.t_name)
        with cached.run(declared(tiny, first, later)):
            return [first_tensor(cached(**each)) for each in (first, later)]

    paths = {".".join("*" if part.isdigit() else part for part in path.split(".")) for path in of_kind(network, MLP)}
    assert all(torch.equal(a, b) for a, b in zip(outputs("mlp"), outputs("+".join(sorted(paths))), strict=True))


def test_the_kind_of_a_place_is_known_to_a_policy():
    network = TINY["WanTransformer3DModel"].build()
    cached = CachedDenoiser(network, HoldsKind(), site="attention+blocks.*.ffn")
    site = cached.resolved_site
    assert {site.kinds[place] for place in site.places} == {SPATIAL, CROSS, MLP}
    assert site.name == "attention+blocks.*.ffn"


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("temporal_attention", r"names no such modules in its blocks \(it names: cross_attention, mlp, spatial_att"),
        ("blocks.*.attention", r"no module of WanTransformer3DModel has such a path; it has .*blocks\.\*\.attn1"),
        (
            "blocks.*.attn1+blocks.*.attn1.to_q",
            r"its place 'blocks.0.attn1.to_q' is inside of its place 'blocks.0.attn1'",
        ),
        ("mlp+blocks.*.ffn", r"two of its parts have 'blocks\.0\.ffn' in common"),
        ("mlp+output", "'output' cannot be joined with the others"),
        ("mlp+", "site is ''"),
    ],
)
def test_what_is_not_there_is_named(site, message):
    network = TINY["WanTransformer3DModel"].build()
    with pytest.raises(SettingsError, match=message):
        CachedDenoiser(network, HoldsKind(), site=site)

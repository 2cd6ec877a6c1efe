"""Learning-to-Cache: a mask is met exactly, read back as it was written, and made by training or from errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

from cachepolicies import CachedDenoiser, CalibrationSamples, SettingsError, sample
from cachepolicies.adapters import adapter_of
from cachepolicies.reference.workloads import image_dit
from cachepolicies.sites import layers_of
from cachepolicies.testing import Check, parametrize_with_checks, policy_checks, registered
from cachepolicies_classics import (
    L2C,
    HoldingErrors,
    LayerMask,
    MaskError,
    calibrated_mask,
    holding_errors,
    plugin,
    read_mask,
    save_mask,
    trained_mask,
)

STEPS = 6
WORKLOAD = image_dit(num_steps=STEPS)
NETWORK: nn.Module = WORKLOAD.denoiser.network  # type: ignore[attr-defined]
MODULES = {place: module for place, (module, _) in layers_of(NETWORK, adapter_of(NETWORK)).items()}
PLACES = tuple(MODULES)

LEVELS = tuple(1000.0 - 150.0 * step for step in range(6))
KINDS = {"0.attn1": "attention", "0.ff": "mlp"}
SMALL = LayerMask("Bench", 6, tuple(KINDS), [["0.attn1"], [], list(KINDS)])


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's names."""
    with registered(plugin, "cachepolicies-classics"):
        yield


def samples(*seeds: int) -> CalibrationSamples:
    """Return noise and labels."""
    drawn = WORKLOAD.inputs(seeds)
    return CalibrationSamples(drawn.noise, drawn.args, seeds=seeds)


def run(denoiser: Any, drawn: CalibrationSamples) -> Tensor:
    """Return the samples of a run."""
    with torch.no_grad():
        return sample(denoiser, WORKLOAD.scheduler, drawn.noise, *drawn.args, num_steps=STEPS)


@cache
def measured() -> HoldingErrors:
    """Return the errors of holding each module, on two samples."""
    return holding_errors(WORKLOAD.denoiser, WORKLOAD.scheduler, samples(0, 1), num_steps=STEPS)


def given(*computed: tuple[str, ...]) -> LayerMask:
    """Return a mask for the image model."""
    return LayerMask(type(NETWORK).__name__, STEPS, PLACES, computed)


@parametrize_with_checks([policy_checks(L2C(SMALL), site=KINDS, timesteps=LEVELS)])
def test_the_contracts(check: Check) -> None:
    """One line."""
    check()


def counted(mask: LayerMask) -> tuple[dict[str, list[int]], Tensor, float]:
    """Return the steps at which each module ran under a mask, the samples, and the work."""
    ran: dict[str, list[int]] = {place: [] for place in PLACES}
    at = [-1]
    hooks = [NETWORK.register_forward_pre_hook(lambda *_: at.__setitem__(0, at[0] + 1))]
    for place, module in MODULES.items():
        hooks.append(module.register_forward_hook(lambda *_, place=place: ran[place].append(at[0])))
    cached = CachedDenoiser(WORKLOAD.denoiser, L2C(mask))
    found = run(cached, samples(5, 6))
    for hook in hooks:
        hook.remove()
    work = cached.trace.work
    assert work is not None
    return ran, found, work


def by_hand(mask: LayerMask, drawn: CalibrationSamples) -> Tensor:
    """Return the samples of a run in which torch's hooks put in what modules returned one step before."""
    kept: dict[str, Any] = {}
    at = [-1]

    def leave(place: str, output: Any) -> Any:
        pair, second = divmod(at[0], 2)
        if second and place not in mask.computed[pair]:
            return kept[place]
        kept[place] = output
        return None

    hooks = [NETWORK.register_forward_pre_hook(lambda *_: at.__setitem__(0, at[0] + 1))]
    for place, module in MODULES.items():
        hooks.append(module.register_forward_hook(lambda module, args, output, place=place: leave(place, output)))
    found = run(WORKLOAD.denoiser, drawn)
    for hook in hooks:
        hook.remove()
    return found


def test_a_mask_is_met_exactly() -> None:
    """First steps run all, second steps what the mask keeps; and what is held is what came at the step before."""
    mask = given(PLACES[:3], (), PLACES[2:])
    ran, found, work = counted(mask)
    for place in PLACES:
        held = [2 * pair + 1 for pair, row in enumerate(mask.computed) if place not in row]
        assert ran[place] == [step for step in range(STEPS) if step not in held], place
    assert work < 1.0
    assert torch.equal(found, by_hand(mask, samples(5, 6)))
    assert torch.equal(found, counted(mask)[1])
    bare = run(WORKLOAD.denoiser, samples(5, 6))
    assert not torch.equal(found, bare)
    everything = CachedDenoiser(WORKLOAD.denoiser, L2C(given(PLACES, PLACES, PLACES)))
    assert not everything.policy.reuses
    assert torch.equal(run(everything, samples(5, 6)), bare)


def test_errors_are_those_of_holding_one_module() -> None:
    """Against a run by hand in which one module is held at one step, which is the first to differ."""
    drawn, outputs = samples(0, 1), []

    def noted(x: Tensor, t: Tensor, *args: Any) -> Tensor:
        output: Tensor = WORKLOAD.denoiser(x, t, *args)
        outputs.append(output)
        return output

    run(noted, drawn)
    bare = outputs[3]
    outputs.clear()
    kept: list[Any] = []

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        kept.append(output)
        return kept[2] if len(kept) == 4 else None

    hook = MODULES[PLACES[5]].register_forward_hook(leave)
    run(noted, drawn)
    hook.remove()
    moved = (outputs[3] - bare).square().flatten(1).sum(1) / bare.square().flatten(1).sum(1)
    assert measured().errors[1][PLACES[5]] == pytest.approx(float(moved.mean()), rel=1e-4)


def test_the_calibrated_mask_holds_what_matters_least_for_its_work() -> None:
    """Chosen on two samples, and looked at on two others: closer to the plain run than holding what matters most."""
    errors, budget = measured(), 0.75
    mask = errors.mask(budget)
    assert mask.origin == "calibrated errors"
    assert (mask.model_class, mask.settings["budget"]) == ("DiTTransformer2DModel", budget)
    _, found, work = counted(mask)
    assert budget - max(errors.shares.values()) / STEPS < work <= budget
    largest = evolve(errors, errors=tuple({place: -error for place, error in row.items()} for row in errors.errors))
    _, other, same_work = counted(largest.mask(budget))
    assert same_work == pytest.approx(work, abs=0.02)
    bare = run(WORKLOAD.denoiser, samples(5, 6))
    assert (found - bare).square().mean() < 0.8 * (other - bare).square().mean()
    least = errors.mask(errors.least_work)
    assert least.share_computed == 0.0
    assert errors.mask(1.0).share_computed == 1.0
    never_first = errors.mask(budget, weights=(1e9, 1.0, 1.0))
    assert never_first.computed[0] == never_first.places
    for wrong in (0.1, 1.2):
        with pytest.raises(SettingsError, match="in pairs of steps, this model takes from"):
            errors.mask(wrong)
    with pytest.raises(SettingsError, match="give 3 numbers from 0"):
        errors.mask(budget, weights=(1.0, -1.0, 1.0))


def test_a_calibrated_mask_is_that_of_its_errors() -> None:
    """In one call, and whatever the size of the batches."""
    given: dict[str, Any] = {"num_steps": 2}
    mask = calibrated_mask(WORKLOAD.denoiser, WORKLOAD.scheduler, samples(0, 1), budget=0.75, batch_size=1, **given)
    errors = holding_errors(WORKLOAD.denoiser, WORKLOAD.scheduler, samples(0, 1), **given)
    assert mask == errors.mask(0.75)


def loss_by_hand(score: float, penalty: float, drawn: CalibrationSamples) -> float:
    """Return the mean over the pairs of mse(full, mixed) + penalty * sum of scores, with one score for all."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def noted(x: Tensor, t: Tensor, *args: Any) -> Tensor:
        output: Tensor = NETWORK(x, t, *args).sample
        calls.append((x, t, output))
        return output

    run(noted, drawn)
    losses = []
    for pair in range(STEPS // 2):
        kept: dict[nn.Module, Tensor] = {}

        def leave(module: nn.Module, args: Any, new: Tensor, kept: dict[nn.Module, Tensor] = kept) -> Tensor:
            if module not in kept:
                kept[module] = new
                return new
            return score * new + (1 - score) * kept[module]

        hooks = [module.register_forward_hook(leave) for module in MODULES.values()]
        with torch.no_grad():
            NETWORK(*calls[2 * pair][:2], *drawn.args)
            mixed = NETWORK(*calls[2 * pair + 1][:2], *drawn.args).sample
        for hook in hooks:
            hook.remove()
        losses.append(float((mixed - calls[2 * pair + 1][2]).square().mean()) + penalty * score * len(PLACES))
    return sum(losses) / len(losses)


def test_training_lowers_the_loss_and_leaves_the_model_alone() -> None:
    """The loss is that of the paper; one that pays nothing for reuse computes more than one that pays much."""
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    trained = {}
    for penalty in (0.0, 1.0):
        trained[penalty] = trained_mask(
            NETWORK,  # without guidance, and of another type
            WORKLOAD.scheduler,
            samples(0),
            num_steps=STEPS,
            penalty=penalty,
            lr=0.5,
            iterations=5,
            threshold=0.5,
        )
        assert trained[penalty].after < trained[penalty].before
    assert trained[1.0].before == pytest.approx(loss_by_hand(0.5, 1.0, samples(0)), rel=1e-4)
    assert trained[0.0].mask.share_computed > 0.7
    assert trained[1.0].mask.share_computed < 0.3
    one = trained[0.0]
    assert one.scores.shape == (STEPS // 2, len(PLACES))
    for row, scores in zip(one.mask.computed, one.scores.tolist(), strict=True):
        assert row == tuple(place for place, score in zip(one.mask.places, scores, strict=True) if score > 0.5)
    assert one.mask.origin == "trained"
    assert one.mask.settings["iterations"] == 5
    assert one.mask.weights == measured().made["weights"]
    assert all(torch.equal(value, before[name]) for name, value in NETWORK.state_dict().items())
    assert not any(parameter.grad is not None for parameter in NETWORK.parameters())
    ran, _, _ = counted(trained[1.0].mask)
    assert sum(map(len, ran.values())) == sum(map(len, trained[1.0].mask.computed)) + STEPS // 2 * len(PLACES)
    with pytest.raises(SettingsError, match="trained_mask: penalty=-1"):
        trained_mask(WORKLOAD.denoiser, WORKLOAD.scheduler, samples(0), num_steps=STEPS, penalty=-1.0)


def test_what_cannot_be_paired_is_refused() -> None:
    """A sampler of two evaluations a step, and a run of one step."""
    for scheduler, steps in (("karras-heun", STEPS), (WORKLOAD.scheduler, 1)):
        with pytest.raises(SettingsError, match="a mask is for pairs of steps of one evaluation each"):
            holding_errors(WORKLOAD.denoiser, scheduler, samples(0), num_steps=steps)


def test_a_mask_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """And what is not as it should be names file, field and value."""
    mask = measured().mask(0.8)
    path = save_mask(mask, tmp_path / "folder" / "mask.json")
    assert read_mask(path) == mask
    assert read_mask(path).created == mask.created
    assert [entry.name for entry in path.parent.iterdir()] == ["mask.json"]
    assert (
        CachedDenoiser(WORKLOAD.denoiser, f"l2c:mask={path}").policy
        == CachedDenoiser(WORKLOAD.denoiser, L2C(mask)).policy
    )
    document = json.loads(path.read_text())
    wrong: dict[str, dict[str, Any]] = {
        "field 'format'": {"format": "cachepolicies-plan"},
        "field 'version' is 9": {"version": 9},
        "'origin' is 'guessed', expected one of trained": {"origin": "guessed"},
        "'num_steps' is 7.5": {"num_steps": 7.5},
        "'computed' is 'of 2 pairs'": {"computed": document["computed"][:2]},
        r"'computed\[1\]' is 'abc', expected a list": {"computed": [[], "abc", []]},
        "'computed' is 'nowhere', expected names that are among": {"computed": [["nowhere"], [], []]},
        "'computed' is .*, expected names of places": {"computed": [[1], [], []]},
        "'places' is .*, expected each name once": {"places": [*document["places"], document["places"][0]]},
        "'timesteps' is .*, expected 6 finite": {"timesteps": [1.0]},
        "'timesteps' is .*, expected numbers": {"timesteps": ["1"] * 6},
        "'weights' is 5": {"weights": 5},
        "'settings.samples' is 'two', expected a number": {"settings": {"samples": "two"}},
        "'versions' is 3, expected an object": {"versions": 3},
        "'notes' is None": {"notes": None},
        "'more' is unknown": {"more": 1},
    }
    for message, change in wrong.items():
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(MaskError, match=f"mask .*mask.json.*{message}"):
            read_mask(path)
    path.write_text(json.dumps({name: value for name, value in document.items() if name != "places"}))
    with pytest.raises(MaskError, match="'places' is missing"):
        read_mask(path)
    for text, message in (("{", "Expecting"), ("[1]", "'format'"), ("", "Expecting")):
        path.write_text(text)
        with pytest.raises(MaskError, match=message):
            read_mask(path)
    with pytest.raises(MaskError, match="cannot be read"):
        CachedDenoiser(WORKLOAD.denoiser, L2C(tmp_path / "none.json"))
    with pytest.raises(MaskError, match=r"save it as 'mask.txt.json'"):
        save_mask(mask, tmp_path / "mask.txt")


def test_a_mask_serves_its_own_model_and_run_only() -> None:
    """Another class, other weights, another site, another number of steps, other timesteps."""
    mask = measured().mask(0.8)
    denoiser = WORKLOAD.denoiser
    with pytest.raises(SettingsError, match="the mask is for a Other, and this is a DiTTransformer2DModel"):
        CachedDenoiser(denoiser, L2C(evolve(mask, model_class="Other")))
    with pytest.raises(SettingsError, match="made with other weights"):
        CachedDenoiser(denoiser, L2C(evolve(mask, weights="0" * 64), check_weights=True))
    with pytest.raises(SettingsError, match="does not say which weights"):
        CachedDenoiser(denoiser, L2C(evolve(mask, weights=None), check_weights=True))
    CachedDenoiser(denoiser, L2C(mask, check_weights=True))
    with pytest.raises(SettingsError, match="the mask has other modules than the site"):
        CachedDenoiser(denoiser, L2C(mask), site="mlp")
    drawn = samples(5)
    cached = CachedDenoiser(denoiser, L2C(mask))
    with pytest.raises(SettingsError, match="the mask is for 6 steps, the run has 8"):
        sample(cached, WORKLOAD.scheduler, drawn.noise, *drawn.args, num_steps=8)
    levels = WORKLOAD.scheduler.timesteps(STEPS)
    other = (levels[0], levels[1] - 20.0, *levels[2:])
    with pytest.raises(SettingsError, match="other timesteps: at step 1"), cached.run(timesteps=other):
        cached(drawn.noise, torch.tensor([levels[0]]), *drawn.args)

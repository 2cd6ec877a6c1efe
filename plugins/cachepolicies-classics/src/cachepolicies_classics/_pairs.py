"""Pairs of steps of an uncached run, and its modules' outputs taken, mixed or held: what masks are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from cachepolicies import CachedDenoiser, CalibrationSamples, InputError, Scheduler, SettingsError, sample
from cachepolicies.adapters import network_of
from cachepolicies.profiles import model_class_name, weights_hash
from cachepolicies_classics.fora import FORA
from cachepolicies_classics.layer_mask import made_now

Outputs = dict[str, Any]
"""What the modules returned, by place."""


@frozen(eq=False)
class Pair:
    """Two steps after one another, of an uncached run of some samples.

    Attributes:
        first: what the denoiser was called with at the first, x ``(B, ...)`` and t ``(B,)``.
        second: the same at the second.
        output: ``(B, ...)`` what it returned at the second.
        samples: with the conditioning of these rows.
    """

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    output: Tensor
    samples: CalibrationSamples


@frozen(eq=False)
class Subject:
    """A denoiser with its modules and its uncached runs.

    Attributes:
        denoiser: ``f(x, t, *args, **kwargs)``.
        modules: by place.
        shares: the part of a call's FLOPs that each place does.
        pairs: for every pair of steps, one entry for each batch of samples.
        made: the fields of a mask that do not depend on how it is chosen.
    """

    denoiser: Callable[..., Any]
    modules: Mapping[str, nn.Module]
    shares: Mapping[str, float]
    pairs: tuple[tuple[Pair, ...], ...]
    made: Mapping[str, Any]

    @classmethod
    def recorded(
        cls,
        denoiser: Callable[..., Any],
        scheduler: Scheduler,
        samples: CalibrationSamples,
        num_steps: int,
        batch_size: int,
    ) -> Subject:
        """Run a denoiser on the samples, and keep the latents of all steps.

        Raises:
            SettingsError: the sampler evaluates twice a step, or there is no pair of steps, or what the modules cost
                cannot be counted.
            NeedsError: the denoiser's network has no adapter that says where attention and MLPs are.
        """
        if scheduler.evaluations_per_step != 1 or num_steps < 2 or batch_size < 1:
            raise SettingsError(
                f"a mask is for pairs of steps of one evaluation each: {scheduler.name!r} makes "
                f"{scheduler.evaluations_per_step}, num_steps is {num_steps}, batch_size {batch_size}"
            )
        timesteps = scheduler.timesteps(num_steps)
        cached = CachedDenoiser(denoiser, FORA(every=2), site="attention+mlp")
        pairs: list[list[Pair]] = [[] for _ in range(num_steps // 2)]
        for start in range(0, len(samples), batch_size):
            batch = samples.rows(start, min(start + batch_size, len(samples)))
            calls: list[tuple[Tensor, Tensor]] = []
            outputs: list[Tensor] = []

            def note(evaluation: Any, outputs: list[Tensor] = outputs) -> None:
                outputs.append(evaluation.output.clone())

            def record(x: Tensor, t: Tensor, *args: Any, calls: list[Any] = calls, **kwargs: Any) -> Any:
                calls.append((x.clone(), t.clone()))
                return denoiser(x, t, *args, **kwargs)

            with torch.no_grad():
                sample(
                    record,
                    scheduler,
                    batch.noise,
                    *batch.args,
                    num_steps=num_steps,
                    callback=note,
                    **batch.kwargs,
                )
            if not start:
                with torch.no_grad(), cached.run(timesteps=timesteps[:1]):
                    cached(*calls[0], *batch.args, **batch.kwargs)
            for number, found in enumerate(pairs):
                found.append(Pair(calls[2 * number], calls[2 * number + 1], outputs[2 * number + 1], batch))
        site = cached.resolved_site
        if site.shares.keys() != set(site.places):
            raise SettingsError(
                "what the modules of this denoiser cost could not be counted; is a part of it compiled?"
            )
        network = network_of(denoiser)
        made = {
            "model_class": model_class_name(network),
            "num_steps": num_steps,
            "places": site.places,
            "timesteps": timesteps,
            "weights": weights_hash(network),
            **made_now(),
        }
        modules = {place: site.modules[place] for place in site.places}
        shares = {place: site.shares[place] for place in site.places}
        return cls(denoiser, modules, shares, tuple(map(tuple, pairs)), made)

    def call(self, at: tuple[Tensor, Tensor], samples: CalibrationSamples) -> Tensor:
        """Call the denoiser, and return its prediction ``(B, ...)``."""
        returned = self.denoiser(*at, *samples.args, **samples.kwargs)
        while isinstance(returned, (tuple, list)):
            returned = returned[0]
        found = returned if isinstance(returned, Tensor) else getattr(returned, "sample", None)
        if not isinstance(found, Tensor):
            raise InputError(f"the denoiser returned a {type(returned).__name__} without a tensor")
        return found

    def kept(self, pair: Pair) -> Outputs:
        """Return what the modules return at the first step of a pair."""
        kept: Outputs = {}

        def note(place: str, output: Any) -> Any:
            kept[place] = output
            return output

        with torch.no_grad(), self.through(note):
            self.call(pair.first, pair.samples)
        return kept

    @contextmanager
    def through(self, change: Callable[[str, Any], Any]) -> Iterator[None]:
        """Hand on ``change(place, output)`` in the place of what each module returns, in one call."""
        calls: dict[nn.Module, int] = {}

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            calls[module] = calls.get(module, 0) + 1
            place = names[module].get(calls[module])
            return output if place is None else change(place, output)

        names: dict[nn.Module, dict[int, str]] = {}
        for place, module in self.modules.items():
            number = place.partition("#")[2]  # behind it stands which call of the module it is
            names.setdefault(module, {})[int(number or 1)] = place
        hooks = [module.register_forward_hook(leave) for module in names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def mixed(weight: Tensor, new: Any, kept: Any) -> Any:
    """Return ``weight * new + (1 - weight) * kept`` of every tensor in a module's output, of the same form."""
    if isinstance(new, Tensor):
        return weight.to(new.dtype) * new + (1.0 - weight).to(new.dtype) * kept
    if isinstance(new, (tuple, list)):
        return type(new)(mixed(weight, one, other) for one, other in zip(new, kept, strict=True))
    return new


def all_pairs(subject: Subject) -> Sequence[tuple[int, Pair]]:
    """Return every pair of every batch, with its number."""
    return [(number, pair) for number, found in enumerate(subject.pairs) for pair in found]

"""What a stand-in at each place of a network does to the output of a call, and what computing the place costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachepolicies.adapters.find import network_of, registered_adapter
from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.base.outputs import tensor_of
from cachepolicies.base.projection import Projection
from cachepolicies.base.units import row_rms
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.calibration.trials import sampled
from cachepolicies.contracts.setup import Setup
from cachepolicies.planning.depth import PlaceErrors
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.sites.flops import CountedFlops
from cachepolicies.sites.modules import AGAIN, ModulesSite, OutputTensors
from cachepolicies.sites.resolve import resolved_site

_WIDTH = 2048
"""Entries kept of what flowed on at a place and step: distances are off by 1.6 %, and a run of 60 places is 25 MB."""


def measure_places(
    model: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    num_steps: int,
    *,
    site: str = "attention+mlp",
) -> PlaceErrors:
    """Measure, along uncached runs, how much each place moves and how much of that arrives at the output.

    At every step each place in turn returns what it had returned at the step before, the others being computed: one
    call a place and step, all samples in one batch, ``N (P + 1)`` calls in all.

    Args:
        model: as for `calibrate`; a module, or one that names it by an attribute ``network``.
        scheduler: of the run, one evaluation a step: whatever `as_scheduler` takes.
        samples: noise, conditioning and seeds.
        num_steps: N.
        site: of modules: kinds, patterns of paths, or several joined by ``+``.

    Returns:
        The errors of the P places.

    Raises:
        NeedsError: the model is no module and names none.
        SettingsError: the scheduler takes two evaluations a step; the site is none of modules; a place is not reached
            in every call, or its work cannot be counted.
    """
    found = as_scheduler(scheduler)
    if found.evaluations_per_step != 1:
        raise SettingsError(
            f"scheduler {found.name!r} makes {found.evaluations_per_step} evaluations a step; places are measured for "
            "samplers that make one"
        )
    if num_steps < 2:
        raise SettingsError(f"num_steps is {num_steps}; what a stand-in does is seen from the second step on")
    network = network_of(model)
    if network is None:
        raise NeedsError(
            f"{type(model).__name__} is no torch.nn.Module and does not name one by an attribute `network`, so that "
            "there are no places inside"
        )
    resolved = resolved_site(site, Setup(model=model, network=network, adapter=registered_adapter(network)))
    if not isinstance(resolved, ModulesSite) or "" in resolved.places:
        raise SettingsError(f"site {site!r} is none of modules; give kinds or patterns, such as 'attention+mlp'")
    watched = _Watched(resolved.modules, len(samples))
    growing = _Growing(model, watched)
    with watched.hooks(), torch.no_grad():
        sampled(found, samples, num_steps, growing)
    return growing.errors()


class _Watched:
    """Hooks at modules: they take what flows on, put something else in its place, and count the work."""

    def __init__(self, modules: Mapping[str, nn.Module], rows: int) -> None:
        self.places = tuple(modules)
        self.rows = rows
        self.instead: dict[str, Tensor] = {}
        self.taken: dict[str, Tensor] = {}
        self.work: dict[str, int] = {}
        self.counter: CountedFlops | None = None
        self._of: dict[nn.Module, dict[int, str]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._before: dict[nn.Module, int] = {}
        for place, module in modules.items():
            _, _, number = place.partition(AGAIN)
            self._of.setdefault(module, {})[int(number) if number.isdecimal() else 1] = place

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch as long as it is entered."""
        handles = [module.register_forward_pre_hook(self._enter) for module in self._of]
        handles += [module.register_forward_hook(self._leave) for module in self._of]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def call(self, function: Callable[[], Any], instead: Mapping[str, Tensor]) -> Tensor:
        """Call the model with something else at some places.

        Raises:
            SettingsError: a place was not reached.
        """
        self.instead, self.taken, self._calls = dict(instead), {}, {}
        output = tensor_of(function()).clone()
        missing = [place for place in self.places if place not in self.taken]
        if missing:
            raise SettingsError(
                f"place {missing[0]!r} was not reached in a call; leave it out of the site: a plan computes every "
                "place of a call or puts something in its place"
            )
        return output

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self.counter is not None:
            self._before[module] = self.counter.total

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        number = self._calls[module] = self._calls.get(module, 0) + 1
        place = self._of[module].get(number)
        if place is None and number > max(self._of[module]):
            known = self._of[module][max(self._of[module])].partition(AGAIN)[0]
            raise SettingsError(
                f"place {known!r} is reached {number} times in a call; a module that runs several times needs a place "
                f"for each: {known + AGAIN + str(number)!r} would be its next"
            )
        if place is None:
            return None
        if self.counter is not None:
            self.work[place] = self.counter.total - self._before[module]
        form, packed = OutputTensors.taken(output, self.rows, place)
        self.taken[place] = packed.clone()
        return form.filled(self.instead[place], self.rows) if place in self.instead else None


class _Growing:
    """A denoiser that measures on its way: called once a step, it returns the model's own output."""

    def __init__(self, model: Callable[..., Any], watched: _Watched) -> None:
        self._model = model
        self._watched = watched
        self._before: dict[str, Tensor] = {}
        self._shares: NDArray[np.float64] = np.zeros(0)
        self._growth: list[NDArray[np.float64]] = []
        self._kept: dict[str, list[Tensor]] = {place: [] for place in watched.places}
        self._projections: dict[str, Projection] = {}

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def called() -> Any:
            return self._model(x.clone(), t, *args, **kwargs)

        watched = self._watched
        if self._before:
            output = watched.call(called, {})
        else:
            with CountedFlops() as watched.counter:
                output = watched.call(called, {})
            self._note_shares(watched.counter)
            watched.counter = None
        fresh = watched.taken
        for place, value in fresh.items():
            flat = value.reshape(value.shape[0], -1)
            project = self._projections.setdefault(place, Projection(flat.shape[1], _WIDTH))
            # A projection keeps sums of squares; what is compared later is their mean over the entries.
            self._kept[place].append(project(flat) / flat.shape[1] ** 0.5)
        if self._before:
            self._growth.append(
                np.stack([self._grown(called, output, place, fresh[place]) for place in watched.places])
            )
        self._before = fresh
        return output

    def errors(self) -> PlaceErrors:
        """Return what was measured; of step 0, where nothing can stand in, what step 1 has."""
        growth = np.stack([self._growth[0], *self._growth], axis=1)
        distances = np.stack([_distances(torch.stack(kept)) for kept in self._kept.values()])
        return PlaceErrors(self._watched.places, self._shares, growth, distances)

    def _grown(self, called: Callable[[], Any], output: Tensor, place: str, fresh: Tensor) -> NDArray[np.float64]:
        before = self._before[place]
        moved = row_rms(fresh.double() - before.double())
        changed = row_rms(self._watched.call(called, {place: before}).double() - output.double())
        return torch.where(moved > 0, changed / moved.clamp(min=1e-300), 0.0).cpu().numpy()

    def _note_shares(self, counter: CountedFlops) -> None:
        if not counter.whole or not counter.total:
            raise SettingsError("the work of the model's places cannot be counted: it runs compiled, or in one graph")
        work = [self._watched.work[place] for place in self._watched.places]
        self._shares = np.array(work) / counter.total


def _distances(kept: Tensor) -> NDArray[np.float64]:
    """Return ``(N, N, B)`` distances of what is kept, ``(N, B, W)``."""
    rows = kept.double().transpose(0, 1)
    apart: NDArray[np.float64] = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return np.moveaxis(apart, 0, -1)

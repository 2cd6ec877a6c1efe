"""What every scheduler promises, as checks: `check_scheduler`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, get_args

import torch
from attrs import field, frozen
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.scheduler import PredictionType, SamplerTime, SamplingRun, Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.registry.load import schedulers
from cachepolicies.registry.registry import Registry
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import copied, difference_between
from cachepolicies.testing.settings import SETTINGS

FAMILIES = ("flow", "vp", "edm")
"""The families of noise schedules."""

_SHAPE = (2, 4, 4)


@frozen(eq=False)
class SchedulerCase:
    """A scheduler with the numbers of steps that it is tried with; see `check_scheduler`."""

    settings: Scheduler
    steps: tuple[int, ...]
    linear: bool
    registry: Registry[Any] = field(factory=schedulers)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler itself."""
        return self.settings

    def setup(self) -> Setup:
        """Return a set-up; a scheduler is not resolved."""
        return Setup()


def _steps(case: SchedulerCase) -> Any:
    return st.sampled_from(case.steps)


_seeds = st.integers(0, 100)


def _noise(samples: int, seed: int, first: int = 0) -> Tensor:
    rows = [
        torch.randn(1, *_SHAPE, generator=torch.Generator().manual_seed(1000 * seed + row))
        for row in range(first, first + samples)
    ]
    return torch.cat(rows)


def _generators(samples: int, seed: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(7000 + 1000 * seed + row) for row in range(first, first + samples)]


Outputs = Callable[[int, Tensor], Tensor]
"""What the denoiser returns: from the number of the evaluation and the latent it is given."""


def _outputs(samples: int, seed: int, first: int = 0) -> Outputs:
    """Return outputs that depend on nothing but the evaluation's number."""
    return lambda number, x: 0.3 * _noise(samples, 100 + seed + 31 * number, first).to(x.dtype)


def _sampled(
    scheduler: Scheduler,
    steps: int,
    noise: Tensor,
    outputs: Outputs,
    generator: torch.Generator | list[torch.Generator] | None,
    look: Callable[[SamplingRun, Tensor, Tensor], None] | None = None,
) -> Tensor:
    run = scheduler.begin(steps, generator=generator)
    x, number = scheduler.initial(noise, steps), 0
    most = scheduler.evaluations_per_step * steps
    while not run.finished:
        expect(number < most, f"the run has not finished after {number} evaluations")
        given, t = run.model_input(x)
        if look is not None:
            look(run, given, t)
        x = run.advance(outputs(number, given), x)
        number += 1
    return x


SCHEDULER: Suite[SchedulerCase] = Suite("scheduler", SETTINGS)


@SCHEDULER.property()
def declares_soundly(case: SchedulerCase) -> None:
    """Family, time, prediction type and evaluations a step are among those there are."""
    one = case.scheduler
    expect(one.family in FAMILIES, f"family is {one.family!r}, none of {FAMILIES}")
    expect(one.time in get_args(SamplerTime), f"time is {one.time!r}, none of {get_args(SamplerTime)}")
    kinds = get_args(PredictionType)
    expect(one.prediction_type in kinds, f"prediction_type is {one.prediction_type!r}, none of {kinds}")
    expect(one.evaluations_per_step in (1, 2), f"evaluations_per_step is {one.evaluations_per_step!r}")
    expect(isinstance(one.stochastic, bool), f"stochastic is {one.stochastic!r}")
    final: object = one.final_t
    expect(final is None or isinstance(final, float), f"final_t is {final!r}")


@SCHEDULER.property()
def config_is_json(case: SchedulerCase) -> None:
    """Its settings are JSON values, and come back from a file as they were."""
    config = dict(case.scheduler.config)
    written = json.loads(json.dumps(config, allow_nan=False))
    expect(written == config, f"{config} comes back as {written}")


@SCHEDULER.property(examples=3, steps=_steps)
def timesteps_fall(case: SchedulerCase, steps: int) -> None:
    """There are as many timesteps as steps, they fall strictly, and are the same when asked again."""
    timesteps: object = case.scheduler.timesteps(steps)
    expect(isinstance(timesteps, tuple), f"timesteps is {timesteps!r}")
    levels = case.scheduler.timesteps(steps)
    expect(all(isinstance(t, float) for t in levels), f"timesteps is {levels!r}")
    expect(len(levels) == steps, f"{len(levels)} timesteps for {steps} steps")
    expect(all(after < before for before, after in pairwise(levels)), f"the timesteps {levels}")
    expect(case.scheduler.timesteps(steps) == levels, "asked again they differ")
    final = case.scheduler.final_t
    expect(final is None or final < levels[-1], f"final_t is {final}, the last timestep {levels[-1]}")


@SCHEDULER.property()
def a_wrong_number_of_steps_is_refused(case: SchedulerCase) -> None:
    """A number of steps that is no positive integer is refused with a SettingsError."""
    wrong: list[Any] = [0, -3, 2.5, True, "10", None]
    for steps in wrong:
        for ask in (case.scheduler.timesteps, case.scheduler.begin):
            try:
                ask(steps)
            except SettingsError:
                continue
            except Exception as error:
                expect(False, f"{ask.__name__}({steps!r}) raised {type(error).__name__}: {error}")
            expect(False, f"{ask.__name__}({steps!r}) went on")


@SCHEDULER.property(examples=3, steps=_steps)
def noise_levels_are_exact(case: SchedulerCase, steps: int) -> None:
    """Alpha and sigma are float64 of the shape of t, finite and >= 0, each entry for itself."""
    levels = torch.tensor(case.scheduler.timesteps(steps), dtype=torch.float64)
    for name in ("alpha", "sigma"):
        of = getattr(case.scheduler, name)
        for shape in ((len(levels),), (len(levels), 1)):
            value = of(levels.reshape(shape))
            expect(value.dtype == torch.float64, f"{name} is {value.dtype}")
            expect(value.shape == shape, f"{name} of t {shape} has shape {tuple(value.shape)}")
            expect(bool((torch.isfinite(value) & (value >= 0)).all()), f"{name} is {value.flatten().tolist()}")
        single = torch.stack([of(level) for level in levels])
        same(difference_between(of(levels), single, name), "one by one it differs")


@SCHEDULER.property(examples=3, steps=_steps, seed=lambda _: _seeds)
def a_run_takes_its_steps(case: SchedulerCase, steps: int, seed: int) -> None:
    """A run visits every timestep once, with as many evaluations as it says; Heun's last step takes one."""
    visited: list[tuple[float, int]] = []

    def look(run: SamplingRun, given: Tensor, t: Tensor) -> None:
        visited.append((run.t, run.stage))
        expect(given.shape == (2, *_SHAPE), f"the denoiser is given the shape {tuple(given.shape)}")
        expect(t.shape == (2,), f"t has the shape {tuple(t.shape)}")
        expect(t.dtype in (torch.float32, torch.int64), f"t is {t.dtype}")
        expect(t.tolist() == [run.t] * 2, f"t is {t.tolist()}, and the run says {run.t}")

    noise = _noise(2, seed)
    x = _sampled(case.scheduler, steps, noise, _outputs(2, seed), _generators(2, seed), look)
    first = tuple(t for t, stage in visited if stage == 0)
    expect(first == case.scheduler.timesteps(steps), f"first evaluations at {first}")
    expected = steps if case.scheduler.evaluations_per_step == 1 else 2 * steps - 1
    expect(len(visited) == expected, f"{len(visited)} evaluations in {steps} steps")
    expect(x.shape == noise.shape, f"the sample has the shape {tuple(x.shape)}")
    expect(bool(torch.isfinite(x).all()), "the sample is not finite")


@SCHEDULER.property(examples=3, steps=_steps, seed=lambda _: _seeds)
def a_run_can_be_repeated(case: SchedulerCase, steps: int, seed: int) -> None:
    """The same noise, outputs and seeds give the same sample; runs that take turns do not disturb each other."""
    scheduler, noise = case.scheduler, _noise(2, seed)
    one = _sampled(scheduler, steps, noise, _outputs(2, seed), _generators(2, seed))
    _sampled(scheduler, max(1, steps - 1), _noise(2, seed + 1), _outputs(2, seed + 1), _generators(2, seed + 1))

    def between(run: SamplingRun, given: Tensor, t: Tensor) -> None:
        other, start = scheduler.begin(steps, generator=_generators(2, seed + 2)), scheduler.initial(noise, steps)
        other.model_input(start)
        other.advance(given.clone(), start.clone())

    again = _sampled(scheduler, steps, noise, _outputs(2, seed), _generators(2, seed), between)
    same(difference_between(one, again, "the sample"), "the second time it differs")


@SCHEDULER.property(
    unless=lambda case: "it is stochastic" if case.scheduler.stochastic else None,
    examples=3,
    steps=_steps,
    seed=lambda _: _seeds,
)
def draws_noise_only_if_it_says_so(case: SchedulerCase, steps: int, seed: int) -> None:
    """A sampler that is not stochastic draws nothing; the generator and torch's own seed do not matter."""
    noise, state = _noise(2, seed), torch.get_rng_state()
    one = _sampled(case.scheduler, steps, noise, _outputs(2, seed), _generators(2, seed))
    other = _sampled(case.scheduler, steps, noise, _outputs(2, seed), None)
    same(difference_between(one, other, "the sample"), "with other generators it differs")
    same(difference_between(state, torch.get_rng_state(), "torch's generator"), "it was drawn from")


@SCHEDULER.property(examples=3, steps=_steps, seed=lambda _: _seeds)
def a_batch_is_its_samples(case: SchedulerCase, steps: int, seed: int) -> None:
    """With one generator a sample, every sample of a batch is what it is alone."""
    whole = _sampled(case.scheduler, steps, _noise(3, seed), _outputs(3, seed), _generators(3, seed))
    for row in range(3):
        alone = _sampled(case.scheduler, steps, _noise(1, seed, row), _outputs(1, seed, row), _generators(1, seed, row))
        far = float((whole[row] - alone[0]).abs().max())
        expect(far <= 1e-5 * max(1.0, float(alone.abs().max())), f"sample {row} is {far:g} away from itself alone")


@SCHEDULER.property(
    unless=lambda case: None if case.linear else "it is said not to be",
    examples=3,
    steps=_steps,
    seed=lambda _: _seeds,
)
def is_linear_in_the_outputs(case: SchedulerCase, steps: int, seed: int) -> None:
    """The sample is linear in the denoiser's outputs, unless `linear=False` is said: planning's weights rest on it."""
    ones, others = _outputs(2, seed), _outputs(2, seed + 50)
    noise = _noise(2, seed)

    def sampled(outputs: Outputs) -> Tensor:
        return _sampled(case.scheduler, steps, noise, outputs, _generators(2, seed)).double()

    a, b = sampled(lambda n, x: 40 * ones(n, x)), sampled(others)
    both = sampled(lambda n, x: 0.25 * 40 * ones(n, x) + 0.75 * others(n, x))
    far = float((both - 0.25 * a - 0.75 * b).abs().max())
    size = max(1.0, float(a.abs().max()), float(b.abs().max()))
    expect(far <= 1e-4 * size, f"the mean of two samples is {far:g} away from the sample of the mean, of {size:g}")


@SCHEDULER.property(examples=3, steps=_steps, seed=lambda _: _seeds)
def leaves_what_it_is_given(case: SchedulerCase, steps: int, seed: int) -> None:
    """Neither the latent nor the output is changed in place."""
    noise = _noise(2, seed)
    run = case.scheduler.begin(steps, generator=_generators(2, seed))
    x, number = case.scheduler.initial(noise, steps), 0
    same(difference_between(noise, _noise(2, seed), "the noise"), "initial changed it")
    while not run.finished:
        before = copied(x)
        given, _ = run.model_input(x)
        output = _outputs(2, seed)(number, given)
        kept = copied(output)
        after = run.advance(output, x)
        same(difference_between(before, x, "the latent"), f"evaluation {number} changed it")
        same(difference_between(kept, output, "the output"), f"evaluation {number} changed it")
        x, number = after, number + 1


def scheduler_checks(
    scheduler: Scheduler | str,
    *,
    steps: Iterable[int] = (1, 2, 5, 12),
    linear: bool = True,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a scheduler, for `parametrize_with_checks`; takes what `check_scheduler` takes."""
    one = as_scheduler(scheduler)
    return SCHEDULER.checks(SchedulerCase(one, tuple(steps), linear), one, label or one.name, expected_failures)


def check_scheduler(scheduler: Scheduler | str, **options: Any) -> None:
    """Check that a scheduler keeps what `cachepolicies.Scheduler` promises.

    ```python
    check_scheduler(MyScheduler(shift=3.0))
    ```

    Args:
        scheduler: anything that `cachepolicies.as_scheduler` takes.
        **options: ``steps=``: numbers of steps to try. ``linear=False``: the sampler is not linear in the outputs, as
            with clipping. ``label=``: short name for ids. ``expected_failures=``: name of a property to the reason why
            it does not hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(scheduler_checks(scheduler, **options))

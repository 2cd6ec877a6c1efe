"""What every tolerance schedule promises, as checks: `check_tolerance_schedule`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import hypothesis
import torch
from attrs import field, frozen

from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.policy import Needs
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.score import Score, ScoreSettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.contracts.tolerance import MAX_REUSE, ToleranceSchedule
from cachepolicies.profiles.schema import Profile
from cachepolicies.registry.load import tolerances
from cachepolicies.registry.registry import Registry
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.scores.resolve import as_score
from cachepolicies.substitutes.resolve import as_substitute
from cachepolicies.testing import strategies as made
from cachepolicies.testing.bench import only_declared
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import copied, difference_between
from cachepolicies.testing.denoisers import HORIZON, SHAPE, calibrated_profile
from cachepolicies.testing.settings import SETTINGS
from cachepolicies.testing.strategies import RunPlan


class _ReadError(Exception):
    """A tensor was read."""


def _unreadable(*_: Any) -> Any:
    raise _ReadError("step.read was called: a tolerance may cost no synchronisation")


@frozen(eq=False)
class ToleranceCase:
    """A tolerance schedule with what it needs; see `check_tolerance_schedule`."""

    settings: ToleranceSchedule
    profile: Profile | None
    scheduler: Scheduler | None
    substitute: Substitute
    score: ScoreSettings
    timesteps: tuple[float, ...] | None
    start: float
    registry: Registry[Any] = field(factory=tolerances)

    def setup(self, profile: Profile | None = None) -> Setup:
        """Return what the schedule is resolved with."""
        setup = Setup(profile or self.profile, scheduler=self.scheduler)
        return setup.with_parts(substitute=as_substitute(self.substitute.resolve(setup)))

    def schedule(self) -> ToleranceSchedule:
        """Return the schedule, resolved, in memory of its own."""
        resolved: object = copied(self.settings).resolve(self.setup())
        expect(isinstance(resolved, ToleranceSchedule), f"it resolves to {resolved!r}, which is no ToleranceSchedule")
        assert isinstance(resolved, ToleranceSchedule)
        return resolved

    def made_score(self) -> Score:
        """Return what a tolerance is compared with."""
        return self.score.resolve(self.setup())

    def run(self, plan: RunPlan, profile: Profile | None) -> RunInfo:
        """Return what is known of a run."""
        timesteps = plan.timesteps if plan.declared else None
        first = plan.timesteps[0]
        shape = (1, *SHAPE)
        return RunInfo(first, timesteps, Layout(1), shape, torch.float32, torch.device("cpu"), profile)

    def tolerances(
        self, schedule: ToleranceSchedule, plan: RunPlan, profile: Profile | None = None, *, times: int = 1
    ) -> list[float]:
        """Return the tolerance at every call of a run; a run that is refused is no example."""
        used = self.profile if profile is None else profile
        run = self.run(plan, used)
        longest = schedule.max_reuse if schedule.max_reuse is not None else 10**6
        try:
            at = schedule.start(run, self.setup(used), self.made_score(), longest)
        except SettingsError:
            hypothesis.reject()
        x = torch.empty(run.shape, device="meta")  # has no values that could be looked at
        steps = [Step(x, t, "default", run.index(t), run, _unreadable) for t in plan.calls]
        return [at(step) for step in steps for _ in range(times)]


def _runs(**options: Any) -> Any:
    def strategy(case: ToleranceCase) -> Any:
        usual: dict[str, Any] = {"declared": True, "jumps": False}
        return made.runs(timesteps=case.timesteps, start=case.start, min_steps=2, **(usual | options))

    return strategy


TOLERANCE: Suite[ToleranceCase] = Suite("tolerance schedule", SETTINGS)


@TOLERANCE.property()
def declares_soundly(case: ToleranceCase) -> None:
    """Its needs are Needs, and its `max_reuse` is None or an integer >= 0."""
    one = case.schedule()
    most: object = one.max_reuse
    expect(isinstance(one.needs, Needs), f"needs is {one.needs!r}")
    expect(most is None or (type(most) is int and most >= 0), f"max_reuse is {most!r}; without one say {MAX_REUSE}")


@TOLERANCE.property(run=_runs())
def reads_no_tensor(case: ToleranceCase, run: RunPlan) -> None:
    """It looks at no value of a tensor: what is asked at every step may not wait for a device."""
    try:
        case.tolerances(case.schedule(), run)
    except (_ReadError, RuntimeError, NotImplementedError) as error:
        expect(False, f"it looked at the latent: {error}")


@TOLERANCE.property(run=_runs())
def is_finite_and_not_negative(case: ToleranceCase, run: RunPlan) -> None:
    """At every step it is a finite number >= 0, and so it is between two steps, where Heun's method asks."""
    for t, value in zip(run.calls, case.tolerances(case.schedule(), run), strict=True):
        sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
        expect(sound, f"at t={t:g} it is {value!r}")


@TOLERANCE.property(run=_runs())
def is_the_same_at_the_same_step(case: ToleranceCase, run: RunPlan) -> None:
    """Asked twice for one step it gives the same, whatever else was asked in between."""
    twice = case.tolerances(case.schedule(), run, times=2)
    pairs = list(zip(twice[::2], twice[1::2], strict=True))
    for t, (one, other) in zip(run.calls, pairs, strict=True):
        same(difference_between(one, other), f"asked twice at t={t:g}")


@TOLERANCE.property(run=_runs(), other=_runs())
def runs_do_not_see_each_other(case: ToleranceCase, run: RunPlan, other: RunPlan) -> None:
    """What it is in a run does not depend on the runs before."""
    used = case.schedule()
    case.tolerances(used, other)
    same(difference_between(case.tolerances(case.schedule(), run), case.tolerances(used, run)), "after another run")


@TOLERANCE.property(run=_runs(declared=None))
def works_with_what_it_declares(case: ToleranceCase, run: RunPlan) -> None:
    """It needs no curve, no table and no length of the run that it does not declare."""
    one = case.schedule()
    needs = one.needs | case.made_score().needs
    plan = RunPlan(run.timesteps, run.declared or needs.run_length, run.second_calls)
    if case.profile is None or not needs.curves | needs.tables:
        case.tolerances(one, plan)
        return
    try:
        case.tolerances(one, plan, only_declared(case.profile, needs))
    except NeedsError as error:
        expect(False, f"it needs what it does not declare: {error}")


def tolerance_checks(
    schedule: ToleranceSchedule,
    *,
    profile: Profile | None = None,
    scheduler: Scheduler | str | None = None,
    substitute: Substitute | str = "hold",
    score: ScoreSettings | str = "substitute",
    timesteps: tuple[float, ...] | None = None,
    start: float = HORIZON,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a tolerance schedule, for `parametrize_with_checks`."""
    case = ToleranceCase(
        schedule,
        calibrated_profile() if profile is None else profile,
        None if scheduler is None else as_scheduler(scheduler),
        as_substitute(substitute),
        as_score(score),
        timesteps,
        start,
    )
    return TOLERANCE.checks(case, schedule, label or str(getattr(schedule, "name", schedule)), expected_failures)


def check_tolerance_schedule(schedule: ToleranceSchedule, **options: Any) -> None:
    """Check that a tolerance schedule keeps what `cachepolicies.ToleranceSchedule` promises.

    ```python
    check_tolerance_schedule(MyTolerance(0.1))
    ```

    Args:
        schedule: as a user would write it.
        **options: what it needs, where it needs more. ``profile=``: else one that was calibrated on a mixture of
            Gaussians. ``scheduler=`` and ``substitute=``: in use. ``score=``: what it is compared with.
            ``timesteps=``: of the runs that it takes, if not any; ``start=``: where runs begin, else 1000. ``label=``:
            short name for ids. ``expected_failures=``: name of a property to the reason why it does not hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(tolerance_checks(schedule, **options))

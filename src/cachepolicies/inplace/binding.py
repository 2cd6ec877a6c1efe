"""A policy bound to a module that is used in place: forms the engine's call from the module's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from cachepolicies._assembly import Assembly
from cachepolicies._call import Signature
from cachepolicies._errors import CachePoliciesError, ProfileError, RunError
from cachepolicies._host import DeclaredTimesteps, host_time
from cachepolicies._layout import equal_parts
from cachepolicies._planned_for import same_substitute
from cachepolicies._run import Call, Declaration, rounding_of
from cachepolicies._step import RunInfo
from cachepolicies._trace import Trace
from cachepolicies.inplace._hook import DenoiserHook
from cachepolicies.inplace.branches import BranchRecogniser
from cachepolicies.inplace.clock import PipelineClock, PipelineRun, Position
from cachepolicies.inplace.targets import scheduler_of_pipeline
from cachepolicies.profiles.match import check_profile
from cachepolicies.schedulers.base import Scheduler
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.sites.base import Invocation

_ONE_TIME = 0.05
"""Weights of two substitutes that differ less follow one time: schedulers interpolate their tables differently, which
makes a hundredth; sigma and log-SNR make a half."""


class Binding:
    """Serves the calls of one module: finds out which run, step and branch each belongs to.

    Attributes:
        name: of the module in its pipeline, or its class name.
        module: the module.
    """

    def __init__(
        self, name: str, module: nn.Module, assembly: Assembly, signature: Signature, clock: PipelineClock | None
    ) -> None:
        self.name = name
        self.module = module
        self.engine, self.site, self.adapter = assembly.engine, assembly.site, assembly.adapter
        self.hook = DenoiserHook(self.serve, self.end_run)
        self._substitute_on = assembly.substitute_on
        self._signature = signature
        self._clock = clock
        self._enabled_with = None if clock is None else clock.scheduler()
        self._branches = BranchRecogniser()
        self._pipeline_run: PipelineRun | None = None
        self._traced: PipelineRun | None = None
        self._announced: Position | None = None
        self._declared_by_caller = False
        self._place: object = None
        self._served: set[str] = set()

    @property
    def trace(self) -> Trace:
        """The record of the run in progress, or of the last one."""
        return self.engine.trace

    @property
    def outdated(self) -> bool:
        """Whether the pipeline has begun another run since: it may have stopped before it came to this module."""
        return self._clock is not None and self._clock.latest is not self._traced

    def declare(self, timesteps: DeclaredTimesteps) -> None:
        """Take the caller's word for the run that begins now; it lasts until `end_run`.

        Raises:
            RunError: the pipeline has another scheduler by now, whose time the substitute does not follow.
        """
        self._refuse_other_time(timesteps.values)
        self._forget()
        self._declared_by_caller = True
        self._traced = None if self._clock is None else self._clock.latest
        self.engine.begin(Declaration(timesteps))

    def end_run(self) -> None:
        """End the run in progress and free what is remembered. The trace stays."""
        if self._pipeline_run is not None:
            self._pipeline_run.over = True
        self._forget()
        self.engine.end()

    def abandon(self) -> None:
        """End a run that failed: as `end_run`, with nothing said of how little it reused."""
        self.engine.reset()
        self.end_run()

    def serve(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve one call of the module; ``function`` is its own forward.

        Raises:
            InputError, RunError, NeedsError, PolicyError, ProfileError: see their messages. After any exception nothing
                of the run is remembered.
        """
        try:
            x, t = self._signature.find(args, kwargs)
            call = self._call(x, t, self._signature.conditioning(args, kwargs))
            return self.site.serve(self.engine, call, Invocation(function, args, kwargs, self._signature, x))
        except BaseException:
            self.abandon()
            raise

    def notes(self, info: RunInfo) -> Sequence[str]:
        """Return what differs between the profile and the run that begins.

        Raises:
            ProfileError: the profile was calibrated for something else, or for another family of schedulers.
        """
        if info.profile is None:
            return ()
        scheduler = None
        unknown: tuple[str, ...] = ()
        if self._clock is not None and self._pipeline_run is not None:
            try:
                scheduler = as_scheduler(self._clock.scheduler())
            except ProfileError:
                raise
            except CachePoliciesError as error:  # a scheduler that we have no adapter for can still be sampled with
                unknown = (f"the pipeline's scheduler cannot be compared with the profile's: {error}",)
        found = check_profile(
            info.profile,
            model=self.module,
            scheduler=scheduler,
            latent_shape=info.shape[1:],
            num_steps=info.num_steps,
            first_t=info.first_t,
            dtype=info.dtype,
        )
        return (*found, *unknown)

    def _call(self, x: Tensor, t: object, conditioning: tuple[Any, ...]) -> Call:
        position = self.hook.position()
        batch = x.shape[0]
        if not self._declared_by_caller:
            self._follow(t, batch, position)
        named = self.hook.branch()
        level, index, place = self._where(t, batch, position, named)
        name = self._branches.name(level, conditioning) if named is None else named
        self._refuse_repetition(place, level, name)
        return Call(x, level, name, True, (), index, copies=lambda: self._copies(x, named))

    def _refuse_repetition(self, place: object, level: float, name: str) -> None:
        """Refuse a second latent that goes through the same steps beside the first: it would get the first one's.

        Raises:
            RunError: a branch is called twice where the pipeline's scheduler has not moved on in between.
        """
        if place is None:
            return
        if place != self._place:
            self._place, self._served = place, set()
        if name in self._served:
            raise RunError(
                f"{self.name} was called twice in branch {name!r} at one step of the scheduler, t={level:g}, "
                "with the same conditioning. Latents that are sampled side by side need a cache each: put them in one "
                'batch, name `model.cache_context("...")` after each, or leave the cache off'
            )
        self._served.add(name)

    def _refuse_other_time(self, timesteps: Sequence[float]) -> None:
        """Refuse a scheduler that replaced the pipeline's since, if the substitute follows its time.

        Raises:
            RunError: the substitute would extrapolate otherwise under this one, or not at all.
        """
        now = None if self._clock is None else self._clock.scheduler()
        if self._substitute_on is None or now is self._enabled_with:
            return
        used = self.engine.substitute
        found, before = scheduler_of_pipeline(now), scheduler_of_pipeline(self._enabled_with)
        if found is not None and before is not None and _alike(found, before):
            return  # made anew, as some do for every picture
        cause: CachePoliciesError | None = None
        try:
            if same_substitute(self._substitute_on(found), used, tuple(timesteps), _ONE_TIME):
                return
        except CachePoliciesError as error:
            cause = error
        had = "it had none" if self._enabled_with is None else f"it had a {type(self._enabled_with).__name__}"
        raise RunError(
            f"the pipeline's scheduler is now a {type(now).__name__}; when the cache was enabled {had}, whose time the "
            f"substitute {used.name!r} follows. Disable the cache and enable it again, or give the substitute a time "
            "of its own, such as time=t"
        ) from cause

    def _copies(self, x: Tensor, named: str | None) -> int:
        """Return how often each sample stands in the batch."""
        if named not in (None, "cond_uncond"):
            return 1  # a call for one of the branches
        guided = None if self._clock is None else self._clock.guided
        return 1 if guided is False else equal_parts(x)

    def _follow(self, t: object, batch: int, position: Position | None) -> None:
        """Begin a run where the pipeline or its context has begun one."""
        timesteps = None if self._clock is None else self._clock.timesteps()
        if self._clock is not None and timesteps is not None:
            if self._pipeline_run is None or self._pipeline_run.source is not timesteps:
                run = self._clock.begin(t, batch, position)
                self._refuse_other_time(timesteps.tolist() if run is None or run.given is None else run.given.values)
                self._forget()
                self._pipeline_run = self._traced = run
                if run is not None:
                    self.engine.begin(Declaration(run.given, announced_steps=run.num_steps))
                    if run.given is None:
                        self.engine.trace.notes.append(
                            "the model is not called with the timesteps of the pipeline's scheduler; steps are known "
                            "by their place, levels as they come"
                        )
        elif position is not None:
            before = self._announced
            if before is None or before.num_steps != position.num_steps or position.index < before.index:
                self._forget()
                self.engine.begin(Declaration(None, announced_steps=position.num_steps))
            self._announced = position

    def _where(
        self, t: object, batch: int, position: Position | None, named: str | None
    ) -> tuple[float, int | None, object]:
        """Return the level of a call, its step where that does not follow from the level, and its place in the loop.

        The place is ``None`` where a sampler may well come twice: nothing says that the loop has not moved on.
        """
        run = self._pipeline_run
        if run is None or self._clock is None:
            declaration = self.engine.declaration
            level = host_time(t, batch, None if declaration is None else declaration.given)
            if declaration is not None:
                level = declaration.snap(level, rounding_of(t))
            return level, None if position is None or self._declared_by_caller else position.index, None
        index = self._clock.index(run, position)
        doubtful = index == self._place and named in self._served
        level = self._clock.level(run, index, t, batch, doubtful=doubtful)
        if run.given is None:
            return level, 0 if index is None else index, index
        declaration = self.engine.declaration
        if declaration is not None:
            level = declaration.snap(level, rounding_of(t))
        agrees = index is not None and run.given.values[index] == level
        first = level == run.given.values[0]
        return level, None, index if agrees else "first" if index is None and first else None

    def _forget(self) -> None:
        self._branches = BranchRecogniser()
        self._pipeline_run, self._announced, self._declared_by_caller = None, None, False
        self._place, self._served = None, set()
        self.site.reset()


def _alike(one: Scheduler, other: Scheduler) -> bool:
    return one.name == other.name and dict(one.config) == dict(other.config)

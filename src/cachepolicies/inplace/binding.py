"""A policy bound to a module that is used in place: forms the engine's call from the module's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from cachepolicies._assembly import Assembly
from cachepolicies._call import Signature
from cachepolicies._errors import CachePoliciesError, ProfileError
from cachepolicies._host import DeclaredTimesteps, host_time
from cachepolicies._run import Call, Declaration, rounding_of
from cachepolicies._step import RunInfo
from cachepolicies._trace import Trace
from cachepolicies.inplace._hook import DenoiserHook
from cachepolicies.inplace.branches import BranchRecogniser
from cachepolicies.inplace.clock import PipelineClock, PipelineRun, Position
from cachepolicies.profiles.match import check_profile
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.sites.base import Invocation


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
        self._signature = signature
        self._clock = clock
        self._branches = BranchRecogniser()
        self._pipeline_run: PipelineRun | None = None
        self._traced: PipelineRun | None = None
        self._announced: Position | None = None
        self._declared_by_caller = False

    @property
    def trace(self) -> Trace:
        """The record of the run in progress, or of the last one."""
        return self.engine.trace

    @property
    def outdated(self) -> bool:
        """Whether the pipeline has begun another run since: it may have stopped before it came to this module."""
        return self._clock is not None and self._clock.latest is not self._traced

    def declare(self, timesteps: DeclaredTimesteps) -> None:
        """Take the caller's word for the run that begins now; it lasts until `end_run`."""
        self._forget()
        self._declared_by_caller = True
        self._traced = None if self._clock is None else self._clock.latest
        self.engine.begin(Declaration(timesteps))

    def end_run(self) -> None:
        """End the run in progress and free what is remembered. The trace stays."""
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
        level, index = self._where(t, batch, position)
        name = self.hook.branch()
        if name is None:
            name = self._branches.name(level, conditioning)
        return Call(x, level, name, True, (), index)

    def _follow(self, t: object, batch: int, position: Position | None) -> None:
        """Begin a run where the pipeline or its context has begun one."""
        timesteps = None if self._clock is None else self._clock.timesteps()
        if self._clock is not None and timesteps is not None:
            if self._pipeline_run is None or self._pipeline_run.source is not timesteps:
                run = self._clock.begin(t, batch, position)
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

    def _where(self, t: object, batch: int, position: Position | None) -> tuple[float, int | None]:
        """Return the level of a call, and its step where that does not follow from the level."""
        run = self._pipeline_run
        if run is None or self._clock is None:
            declaration = self.engine.declaration
            level = host_time(t, batch, None if declaration is None else declaration.given)
            if declaration is not None:
                level = declaration.snap(level, rounding_of(t))
            return level, None if position is None or self._declared_by_caller else position.index
        index = self._clock.index(run, position)
        level = self._clock.level(run, index, t, batch)
        if run.given is None:
            return level, 0 if index is None else index
        declaration = self.engine.declaration
        return level if declaration is None else declaration.snap(level, rounding_of(t)), None

    def _forget(self) -> None:
        self._branches = BranchRecogniser()
        self._pipeline_run, self._announced, self._declared_by_caller = None, None, False
        self.site.reset()

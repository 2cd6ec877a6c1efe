"""A policy bound to a module that is used in place: forms the engine's call from the module's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from cachepolicies.assembly.assemble import Assembly
from cachepolicies.assembly.run_handle import DeclaredRun
from cachepolicies.base.errors import CachePoliciesError, ProfileError, RunError
from cachepolicies.base.host import DeclaredTimesteps, host_time
from cachepolicies.base.layout import equal_parts
from cachepolicies.base.signature import Signature
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.substitute import order_of
from cachepolicies.engine.call import DEFAULT_BRANCH, Call, Declaration
from cachepolicies.engine.choice import Choice
from cachepolicies.engine.conditioning import Kept, writes_memory
from cachepolicies.engine.engine import Engine, enter
from cachepolicies.engine.invocation import Invocation
from cachepolicies.engine.lifecycle import FEW_STEPS, Request
from cachepolicies.engine.requests import Requests, generator_of
from cachepolicies.engine.together import Together
from cachepolicies.engine.trace import Trace
from cachepolicies.inplace._hook import DenoiserHook
from cachepolicies.inplace.branches import BranchRecogniser
from cachepolicies.inplace.clock import PipelineClock, PipelineRun, Position
from cachepolicies.inplace.targets import scheduler_of_pipeline
from cachepolicies.profiles.match import check_profile
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.substitutes.resolve import same_substitute

_ONE_TIME = 0.05
"""Weights of two substitutes that differ less follow one time: schedulers interpolate their tables differently, which
makes a hundredth; sigma and log-SNR make a half."""


class InPlaceRequest(Request):
    """One generation on a module that is used in place, and where in it the module is.

    Attributes:
        branches: names the branches that nobody names.
        pipeline_run: that the pipeline's scheduler is set up for, if the request follows it.
        traced: the pipeline's run that the trace is of.
        announced: where a context said last that it is.
        declared_by_caller: whether the run was declared, and nothing else is asked.
        at: the point of the loop at which branches are being served, and its noise level.
        served: branches that were served there, with the latent that each was called with.
        full: whether the rest of the run is evaluated in full: several latents go through it.
    """

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.traced: PipelineRun | None = None
        self.declared_by_caller = False
        self._torn = 0
        self.forget()

    def note_torn(self) -> None:
        """Note that the run in progress ends; say it where run after run ends in the middle, after a single step.

        Pipelines that draw several views of one step exchange what their scheduler knows from view to view.
        """
        run, known = self.pipeline_run, self.run
        begun_late = run is not None and run.offset > 0 and run.num_steps > 1
        one_level = known is not None and known.last_t == known.info.first_t
        self._torn = self._torn + 1 if begun_late and one_level else 0
        if self._torn == FEW_STEPS and self.policy.reuses:
            self.warn_once(
                "torn",
                "the pipeline exchanges the state of its scheduler from call to call, as those do that draw several "
                "views of one step; its steps are not known, and every call is evaluated",
            )

    def forget(self) -> None:
        """Forget where in a run the module is."""
        self.branches = BranchRecogniser()
        self.pipeline_run: PipelineRun | None = None
        self.announced: Position | None = None
        self.at: tuple[object, float] | None = None
        self.served: dict[str, Kept] = {}
        self.full = False

    def conclude(self, failed: bool = False) -> None:
        """End the run in progress, declared or not, and free what is remembered; what comes then is another run."""
        if failed:
            self.reset()
        if self.pipeline_run is not None:
            self.pipeline_run.over = True
        self.forget()
        self.declared_by_caller = False
        self.end()

    def fail(self) -> None:
        """Forget what a failed call was in the middle of; a declared run stays declared, and begins again."""
        if self.declared_by_caller:
            self.reset()
            self.forget()
        else:
            self.conclude(failed=True)

    def finish(self) -> None:
        """End a declared run that came to its end. If a call of it failed on the way, nothing is said of the rest."""
        try:
            if self.run is not None:
                self._conclude()
        finally:
            self.conclude(failed=True)

    def arrive(self, at: object, level: float) -> None:
        """Note at which point of the loop a call comes; at another than the last, no branch was served yet.

        Args:
            at: the point, where it is known; the same for all the calls of one step.
            level: noise level of the call.
        """
        if (at, level) != self.at:
            self.at, self.served = (at, level), {}

    def told_apart(
        self, branch: str, x: Tensor, level: float, at: object, perturbs: bool
    ) -> tuple[str, EngineReason | None]:
        """Return the branch of a call, and why it is to be evaluated in full if it is one of several of that branch.

        Args:
            branch: as its name or its conditioning says.
            x: ``(B, ...)`` its latent.
            level: its noise level.
            at: the point of the loop, ``None`` where a sampler may well come twice.
            perturbs: whether the pipeline's guider changes the model for some passes of a step, after the plain ones.
        """
        before = self.served.get(branch)
        if self.full:
            return branch, EngineReason.SIDE_BY_SIDE
        if before is None or self.pipeline_run is None or not self.engine.looks:
            self.served[branch] = Kept.mere(x)
            return branch, None
        if not before.still_equals(x):
            if at is None:
                self.served[branch] = Kept.mere(x)
                return branch, None
            # A cache for each is what they need, and nothing tells which is which: the first would lend to the second.
            self.full = True
            self.warn_once(
                "side by side",
                f"branch {branch!r} was called with another latent at the same step, t={level:g}: several latents go "
                "through the run in turn, and all of it is evaluated. To cache them, put them in one batch, or name "
                '`model.cache_context("...")` after each',
            )
            return branch, EngineReason.SIDE_BY_SIDE
        if perturbs:
            return f"{branch}, perturbed", None
        return f"{branch}, again", EngineReason.CALLED_AGAIN


class Binding:
    """Serves the calls of one module: finds out which request, run, step and branch each belongs to.

    Attributes:
        name: of the module in its pipeline, or its class name.
        module: the module.
        assembly: policy, substitute and site, resolved.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        assembly: Assembly,
        signature: Signature,
        clock: PipelineClock | None,
        together: Together,
    ) -> None:
        self.name = name
        self.module = module
        self.assembly = assembly
        self._only_reads = None if assembly.adapter is None else assembly.adapter.reads_memory
        self.choice, self.site = assembly.choice, assembly.site
        self.hook = DenoiserHook(self.serve, self.end_run)
        self.requests: Requests[InPlaceRequest] = Requests(partial(_request_of, weakref.ref(self)), name)
        self._signature = signature
        self._together = together
        self.remarks: tuple[str, ...] = ()
        self._clock = clock
        self._enabled_with = None if clock is None else clock.scheduler()

    @property
    def engine(self) -> Engine:
        """What served the last run, or serves the next."""
        return self.choice.latest

    def guidance(self) -> float | None:
        """Return how strongly the pipeline guides now, ``None`` where it does not say."""
        return None if self._clock is None else self._clock.scale()

    @property
    def request(self) -> InPlaceRequest:
        """The request that was used last."""
        latest = self.requests.latest
        return self.requests.undeclared() if latest is None else latest

    @property
    def trace(self) -> Trace:
        """The record of the run in progress, or of the last one."""
        return self.request.trace

    @property
    def outdated(self) -> bool:
        """Whether the pipeline has begun another run since: it may have stopped before it came to this module."""
        return self._clock is not None and self._clock.latest is not self.request.traced

    def declared(self, timesteps: DeclaredTimesteps) -> DeclaredRun:
        """Return a run that takes the caller's word for its timesteps.

        Raises:
            RunError: the pipeline has another scheduler by now, whose time the substitute does not follow.
        """
        self._refuse_other_time(timesteps.values)
        request = InPlaceRequest(self.choice)
        request.declared_by_caller = True
        request.traced = None if self._clock is None else self._clock.latest
        return DeclaredRun(self.requests, request, Declaration(timesteps), self.name)

    def end_run(self) -> None:
        """End the run in progress of whoever calls, and free what is remembered. The trace stays."""
        self.requests.current().conclude()

    def end_all(self, failed: bool = False) -> None:
        """End every run in progress and free what is remembered."""
        for request in self.requests.all():
            request.conclude(failed)

    def serve(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve one call of the module; ``function`` is its own forward.

        Raises:
            InputError, RunError, NeedsError, PolicyError, ProfileError: see their messages. After any exception nothing
                of the run is remembered.
        """
        request = self.requests.current()
        try:
            x, t = self._signature.find(args, kwargs)
            conditioning = self._signature.conditioning(args, kwargs)
            if writes_memory(conditioning, self._only_reads):
                known = self._only_reads is not None
                request.pass_by(host_time(t, x.shape[0]), self.hook.branch() or DEFAULT_BRANCH, expected=known)
                return function(*args, **kwargs)
            call = self._call(request, x, t, conditioning)
            before = request.run
            served = enter(request, call)
            if request.run is not before:
                request.branches.forget_but(call.branch)
            if served.engine.passes:
                output = function(*args, **kwargs)
                served.pass_through()
                return output
            invocation = Invocation(function, args, kwargs, self._signature, x)
            served, output = self._together.serve(self.site, served, invocation)
            served.look(invocation)
            return output
        except BaseException:
            request.fail()
            raise

    def notes(self, info: RunInfo) -> Sequence[str]:
        """Return what is to be known of the pipeline, and what differs between the profile and the run that begins.

        Raises:
            ProfileError: the profile was calibrated for something else, or for another family of schedulers.
        """
        if info.profile is None:
            return self.remarks
        scheduler = None
        unknown: tuple[str, ...] = ()
        if self._clock is not None and self.requests.current().pipeline_run is not None:
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
        return (*self.remarks, *found, *unknown)

    def _call(self, request: InPlaceRequest, x: Tensor, t: object, conditioning: dict[str, Any]) -> Call:
        position = self.hook.position()
        if position is None and self._clock is not None:
            position = self._clock.guided_position()
        batch = x.shape[0]
        if not request.declared_by_caller:
            self._follow(request, t, batch, position)
        named = self.hook.branch()
        level, index, at = self._where(request, t, batch, position, named)
        request.arrive(at, level)
        branch = request.branches.name(conditioning, request.served) if named is None else named
        perturbs = self._clock is not None and self._clock.perturbs
        branch, full = request.told_apart(branch, x, level, at, perturbs)
        origin = 0 if request.declaration is not None else generator_of(1)
        return Call(
            x,
            level,
            branch,
            True,
            conditioning,
            index,
            lambda: self._copies(x, named),
            origin,
            full,
            self._together.found,
        )

    def _refuse_other_time(self, timesteps: Sequence[float]) -> None:
        """Refuse a scheduler that replaced the pipeline's since, if the substitute follows its time.

        Raises:
            RunError: the substitute would extrapolate otherwise under this one, or not at all.
        """
        if self.assembly.substitute is None:
            return  # chosen for every run, with the scheduler that is there then
        now = None if self._clock is None else self._clock.scheduler()
        if now is self._enabled_with or order_of(self.engine.substitute) in (None, 0):
            return
        used = self.engine.substitute
        found, before = scheduler_of_pipeline(now), scheduler_of_pipeline(self._enabled_with)
        if found is not None and before is not None and _alike(found, before):
            return  # made anew, as some do for every picture
        cause: CachePoliciesError | None = None
        try:
            if same_substitute(self.assembly.substitute_on(found), used, tuple(timesteps), _ONE_TIME):
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

    def _follow(self, request: InPlaceRequest, t: object, batch: int, position: Position | None) -> None:
        """Begin a run where the pipeline or its context has begun one."""
        timesteps = None if self._clock is None else self._clock.timesteps()
        if self._clock is not None and timesteps is not None:
            if request.pipeline_run is None or request.pipeline_run.source is not timesteps:
                self._clock.refuse_strangers(self.name)
                run = self._clock.begin(t, batch, position)
                self._refuse_other_time(timesteps.tolist() if run is None or run.given is None else run.given.values)
                request.note_torn()
                request.forget()
                request.pipeline_run = request.traced = run
                if run is not None:
                    request.begin(Declaration(run.given, announced_steps=run.num_steps))
                    if run.given is None:
                        request.trace.notes.append(
                            "the model is not called with the timesteps of the pipeline's scheduler; steps are known "
                            "by their place, levels as they come"
                        )
        elif position is not None:
            before = request.announced
            if before is None or before.num_steps != position.num_steps or position.index < before.index:
                request.forget()
                request.begin(Declaration(None, announced_steps=position.num_steps))
            request.announced = position

    def _where(
        self, request: InPlaceRequest, t: object, batch: int, position: Position | None, named: str | None
    ) -> tuple[float, int | None, object]:
        """Return the level of a call, its step where that does not follow from the level, and its point in the loop.

        The point is ``None`` where a sampler may well come twice: nothing says that the loop has not moved on.
        """
        run, declaration = request.pipeline_run, request.declaration
        if run is None or self._clock is None:
            level = host_time(t, batch, None if declaration is None else declaration.given)
            if declaration is not None:
                level = declaration.snap(level, t)
            return level, None if position is None or request.declared_by_caller else position.index, None
        index = self._clock.index(run, position)
        doubtful = request.at is not None and index == request.at[0] and named in request.served
        level = self._clock.level(run, index, t, batch, doubtful=doubtful)
        if run.given is None:
            return level, 0 if index is None else index, index
        if declaration is not None:
            level = declaration.snap(level, t)
        agrees = index is not None and run.given.values[index] == level
        first = level == run.given.values[0]
        return level, None, index if agrees else "first" if index is None and first else None


def _alike(one: Scheduler, other: Scheduler) -> bool:
    return one.name == other.name and dict(one.config) == dict(other.config)


def _request_of(binding: weakref.ref[Binding]) -> InPlaceRequest:
    """Return a new request of a binding, which it does not keep alive."""
    found = binding()
    assert found is not None  # it holds who asks
    return InPlaceRequest(found.choice)

"""`CachedDenoiser`: any denoiser, called as before, evaluated less often."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from cachepolicies.assembly.assemble import Parts, assemble
from cachepolicies.assembly.options import Options
from cachepolicies.assembly.run_handle import DeclaredRun, RunHandle
from cachepolicies.base.budget import as_budget
from cachepolicies.base.errors import RunError, SettingsError
from cachepolicies.base.host import DeclaredTimesteps, host_time
from cachepolicies.base.signature import Signature
from cachepolicies.contracts.adapter import Adapter
from cachepolicies.contracts.denoiser import RunAwareDenoiser
from cachepolicies.contracts.policy import CachePolicy, PolicySettings
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.site import ResolvedSite, Site
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.engine.call import DEFAULT_BRANCH, Call, Declaration
from cachepolicies.engine.choice import Choice
from cachepolicies.engine.conditioning import writes_memory
from cachepolicies.engine.engine import Engine, enter
from cachepolicies.engine.invocation import Invocation
from cachepolicies.engine.lifecycle import Request
from cachepolicies.engine.requests import Requests, generator_of
from cachepolicies.engine.together import Together
from cachepolicies.engine.trace import Trace
from cachepolicies.policies.limits import Limits
from cachepolicies.profiles.match import check_profile
from cachepolicies.profiles.schema import Profile
from cachepolicies.schedulers.conventions import Convention, as_convention
from cachepolicies.schedulers.resolve import as_scheduler


class CachedDenoiser(RunAwareDenoiser):
    """Wrap a denoiser so that evaluations whose result is predictable are skipped.

    The wrapper is called exactly as the model is, inside anybody's sampling loop, and returns the type the model
    returns:

    ```python
    denoiser = CachedDenoiser(model, policy="sencache", profile="video-dit", epsilon=0.1)
    with denoiser.run(timesteps=timesteps):
        for t, t_next in pairwise([*timesteps, 0.0]):
            x = x + (t_next - t) / 1000 * denoiser(x, t, prompt)
    print(denoiser.trace)
    ```

    Without ``run`` a run starts by itself at the first call, whenever t goes back, and whenever the shape, dtype or
    device of x change. A loop that was broken off and is started again below the t it had reached cannot be told from
    its continuation: declare the run then.

    A wrapper serves any number of samplings at once. Each has its own state: a run belongs to the code inside its
    ``with``, and what declares no run has a request for itself in each thread and asyncio task. Where several runs are
    open in one function, call through the handle that ``run`` gives: ``run(x, t, ...)``.

    Attributes:
        convention: how the model, and so the wrapper, counts t.
        model: the wrapped model; its attributes (``parameters``, ``config``, ...) are reachable through the wrapper.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        policy: str | PolicySettings | None = None,
        *,
        budget: int | float | str | None = None,
        target: str | None = None,
        profile: Profile | str | Path | None = None,
        scheduler: Scheduler | str | Any | None = None,
        substitute: str | Substitute | None = None,
        site: str | Site | None = None,
        adapter: Adapter | None = None,
        limits: Limits | None = None,
        cfg: Literal["separate", "batched"] = "separate",
        branches: Literal["shared", "independent"] = "shared",
        per_sample: bool | None = None,
        batched: Collection[str] | None = None,
        x_name: str | None = None,
        t_name: str | None = None,
        audit: float = 0.0,
        audit_seed: int = 0,
        learn: bool | str | Path = True,
        convention: str | Convention | None = None,
        **settings: Any,
    ) -> None:
        """Set up; everything that can be checked before the first call is checked here.

        Args:
            model: any callable ``f(x, t, *args, **kwargs)`` that returns a tensor, a tuple or list with a tensor
                first, or an object with a tensor ``.sample``. Elements behind the first are those of the last
                evaluation.
            policy: when to reuse; left out, what is best: planned from the profile, else learned from the first run,
                see ``learn``. A registered name, a spec ``"sencache:epsilon=0.1,max_reuse=3"``, or an object.
            budget: what a run may cost: a number of evaluations (22), a fraction of the uncached work (0.4), or a
                speed-up (``"2.5x"``); a half unless given. A policy with a threshold has it solved for.
            target: instead, what new samples shall have: ``"45dB"`` or ``"0.01rms"``; takes a profile with trials.
            profile: what calibration measured: a `Profile`, or what `load_profile` takes.
            scheduler: the noise schedule in use, to check the profile against, to declare runs by their number of
                steps, and for what extrapolates in its time (else the profile's): a registered name, a diffusers
                scheduler or its class, or a `Scheduler`.
            substitute: what stands in for a skipped evaluation: a registered name, a spec, or an object; left out, what
                is best, and for a policy with settings of its own what it is published with, else ``"hold"``.
            site: where the evaluation is cut: ``"output"``, else this one, which works with any callable; ``"blocks"``,
                the block stack of a network whose class has an adapter; another registered name or a spec; the path of
                one submodule; or a `Site`. Inside the network, a wrapper around it names it by an attribute
                ``network``.
            adapter: for sites inside the network, instead of the one registered for its class.
            limits: laid around the policy: protected ends, most reuses in a row, most evaluations, a retention window.
            cfg: ``"batched"`` if the batch is doubled for guidance, ``cat([x, x])``: both rows of a sample then follow
                one decision. ``"separate"`` otherwise; name the branch of every call.
            branches: whether the calls at one t share the decision of the first, or each branch decides for itself; a
                policy that says so itself (`CachePolicy.by_branch`) decides for each in any case.
            per_sample: whether every sample decides for itself; by default it does unless the adapter of the network
                says that the samples of a batch depend on each other, or the arguments of a call cannot be cut by rows.
            batched: names of the arguments with one row a sample; by default every tensor whose first dimension is
                the batch size.
            x_name: name of the latent argument, where it is not found by itself.
            t_name: name of the noise-level argument, where it is not found by itself.
            audit: fraction of the reused calls that is evaluated all the same, for the trace only.
            audit_seed: seed of that choice.
            learn: where nothing is known of the model and no policy is named, the first run is recorded, and later ones
                like it are planned. What is learned is kept in the user's cache folder, or in this folder; ``False``
                learns nothing, and evaluates steps spaced over the run.
            convention: how the model counts t, where not as diffusers does: ``"flow-matching"`` for t from 0 to
                1, ``"unit"`` for t from 1 to 0; see `cachepolicies.schedulers.CONVENTIONS`. The wrapper is called as
                the model is; profiles, plans and traces count as this library does.
            **settings: settings of the policy, when it is given by name.

        Raises:
            UnknownNameError: unknown policy, scheduler, substitute or profile.
            SettingsError: a setting has an unknown name, a wrong type, or a value out of range.
            NeedsError: the policy needs a profile or signals that were not provided, or the site is inside a network
                that there is none of, or none that is known.
            ProfileError: the profile is not valid, or was calibrated for something else.
        """
        if not callable(model):
            raise SettingsError(f"model is a {type(model).__name__}; a denoiser is a callable f(x, t, ...)")
        self.model = model
        self._options = Options(cfg, branches, per_sample, audit, audit_seed)
        self._arguments = {
            "model": model,
            "policy": policy,
            "budget": budget,
            "target": target,
            "profile": profile,
            "scheduler": scheduler,
            "substitute": substitute,
            "site": site,
            "adapter": adapter,
            "limits": limits,
            "cfg": cfg,
            "branches": branches,
            "per_sample": per_sample,
            "batched": batched,
            "x_name": x_name,
            "t_name": t_name,
            "audit": audit,
            "audit_seed": audit_seed,
            "learn": learn,
            "convention": convention,
            **settings,
        }
        self.convention = as_convention(convention)
        self._recounts = not self.convention.is_own
        self._scheduler = None if scheduler is None else as_scheduler(scheduler)
        self._assembly = assembly = assemble(
            model,
            Parts(policy, settings, profile, substitute, site, adapter, limits, as_budget(budget, target), learn),
            engine_settings=self._options.for_engine,
            notes=_notes_of(weakref.ref(self)),
            scheduler=_always(self._scheduler),
        )
        self._choice, self._site = assembly.choice, assembly.site
        # the adapter knows the network's arguments, not those of a wrapper around it
        known = assembly.adapter if isinstance(model, nn.Module) else None
        self._signature = Signature.of(model, x_name, t_name, batched, None if known is None else known.rows)
        self._only_reads = None if known is None else known.reads_memory
        self._together = Together(asked=per_sample is True)
        self._requests: Requests[Request] = Requests(partial(Request, self._choice), "this denoiser")
        self._branch: ContextVar[str | None] = ContextVar("branch", default=None)
        self._is_plain = isinstance(self._choice, Engine) and self._choice.passes
        if self.profile is not None and self._scheduler is not None:
            check_profile(self.profile, scheduler=self._scheduler)

    @property
    def choice(self) -> Choice:
        """What chooses policy and substitute of every run; its ``sentence`` says which, and where they are from."""
        return self._choice

    @property
    def policy(self) -> CachePolicy:
        """The policy that decides: resolved, with what it takes from the profile."""
        return self._choice.latest.policy

    @property
    def settings(self) -> PolicySettings | None:
        """The policy as it was given, ``None`` where it was left out."""
        return self._assembly.settings

    @property
    def substitute(self) -> Substitute:
        """What stands in for a skipped evaluation, resolved."""
        return self._choice.latest.substitute

    @property
    def site(self) -> str:
        """Where the evaluation is cut: ``"output"``, ``"blocks"``, a registered name or a submodule's path."""
        return self._site.name

    @property
    def resolved_site(self) -> ResolvedSite:
        """Where the evaluation is cut, on the model: its places, and what a reuse of each skips."""
        return self._site

    @property
    def profile(self) -> Profile | None:
        """What calibration measured, if the policy was given it."""
        return self._choice.latest.profile

    @property
    def trace(self) -> Trace:
        """The record of the run that was begun or called last; a run's own handle has its own."""
        latest = self._requests.latest
        return (self._requests.undeclared() if latest is None else latest).trace

    @property
    def nfe(self) -> float:
        """Evaluations per sample in the last run."""
        return self.trace.nfe

    @property
    def cache_ratio(self) -> float:
        """Reused calls / all calls in the last run."""
        return self.trace.cache_ratio

    def check_scheduler(self, scheduler: Scheduler | str | Any) -> tuple[str, ...]:
        """Check that the profile, if there is one, serves a scheduler; `cachepolicies.sample` does so by itself.

        Args:
            scheduler: a registered name, a diffusers scheduler or its class, or a `Scheduler`.

        Returns:
            What differs and is allowed, for example another shift.

        Raises:
            ProfileError: the profile is for another family of schedulers or another prediction type.
        """
        return () if self.profile is None else check_profile(self.profile, scheduler=as_scheduler(scheduler))

    def reset(self) -> None:
        """Forget every run in progress and free what is cached. The traces stay."""
        for request in self._requests.all():
            request.reset()

    def run(self, timesteps: Sequence[float] | Tensor | None = None, *, num_steps: int | None = None) -> RunHandle:
        """Declare a run: its timesteps, and that nothing is remembered before and after it.

        ```python
        with denoiser.run(timesteps=timesteps) as run:
            ...  # denoiser(x, t), or run(x, t) where several runs are open in one function
        print(run.trace)
        ```

        Args:
            timesteps: ``(N,)`` the t of every step, in the units and order the denoiser is called with. Give the
                sampler's own tensor if there is one: a t taken from it is then never read back from the device.
            num_steps: instead of ``timesteps``, when the wrapper was given a scheduler.

        Returns:
            A context, which gives itself: the handle of the run. It has the trace, and calls the denoiser.

        Raises:
            RunError: neither or both are given, or ``num_steps`` without a scheduler.
            InputError: the timesteps are not a flat sequence of finite numbers.
        """
        if (timesteps is None) == (num_steps is None):
            raise RunError("declare a run by its timesteps or by num_steps, exactly one of them")
        if timesteps is None and num_steps is not None:
            if self._scheduler is None:
                raise RunError(f"num_steps={num_steps} needs a scheduler: CachedDenoiser(..., scheduler=...)")
            timesteps = [self.convention.own(level) for level in self._scheduler.timesteps(num_steps)]
        given = DeclaredTimesteps.of(timesteps)
        levels = None if self.convention.is_own else tuple(self.convention.level(t) for t in given.values)
        declaration = Declaration(given, levels=levels)
        return RunHandle([DeclaredRun(self._requests, Request(self._choice), declaration)], self)

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """Name the guidance branch of the calls inside the context, as ``branch=`` does for one call."""
        token = self._branch.set(_branch_name(name))
        try:
            yield
        finally:
            self._branch.reset(token)

    def __call__(self, *args: Any, branch: str | None = None, **kwargs: Any) -> Any:
        """Call the denoiser.

        Args:
            *args: what the model takes.
            branch: name of the guidance branch, for example ``"cond"``; not passed on.
            **kwargs: what the model takes.

        Returns:
            What the model returns, with the prediction of the reused samples substituted. The caller may change the
            prediction in place.

        Raises:
            InputError: x or t cannot be used, or the output holds no tensor.
            RunError: the call does not fit the declared run, or guidance branches are not named.
        """
        name = self._branch.get() if branch is None else _branch_name(branch)
        request = self._requests.current()
        declaration = request.declaration
        try:
            x, t = self._signature.find(args, kwargs)
            level = host_time(t, x.shape[0], None if declaration is None else declaration.given)
        except BaseException:
            request.reset()
            raise
        conditioning = {} if self._is_plain else self._signature.conditioning(args, kwargs)
        if writes_memory(conditioning, self._only_reads):
            request.pass_by(level, name or DEFAULT_BRANCH, expected=self._only_reads is not None)
            return self.model(*args, **kwargs)
        if self._recounts:
            level = self.convention.level(level)
        if declaration is not None:
            level = declaration.snap(level, t)
        call = Call(
            x,
            level,
            name or DEFAULT_BRANCH,
            name is not None,
            conditioning,
            origin=generator_of(2) if declaration is None else 0,
            as_one=self._together.found,
        )
        served = enter(request, call)
        if served.engine.passes:
            try:
                output = self.model(*args, **kwargs)
            except BaseException:
                request.reset()
                raise
            served.pass_through()
            return output
        invocation = Invocation(self.model, args, kwargs, self._signature, x)
        served, output = self._together.serve(self._site, served, invocation)
        served.look(invocation)
        return output

    def to(self, *args: Any, **kwargs: Any) -> CachedDenoiser:
        """Move or cast the model as ``torch.nn.Module.to`` does, and return the wrapper."""
        getattr(self.model, "to")(*args, **kwargs)  # noqa: B009
        self.reset()
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "_arguments") or name.startswith("__"):  # not there yet, or asked for by copy and the like
            raise AttributeError(name)
        value = getattr(self.model, name)
        if isinstance(self.model, nn.Module) and getattr(value, "__self__", None) is self.model:
            return self._returning_wrapper(value)
        return value

    def _returning_wrapper(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return a method of the module that gives the wrapper where it gives the module: ``.eval()``, ``.cuda()``."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if result is not self.model:
                return result
            self.reset()
            return self

        return call

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles begin like a new wrapper: settings and model, no run in progress."""
        return _made_anew, (self._arguments,)

    def __repr__(self) -> str:
        said = self._choice.sentence
        return f"CachedDenoiser({type(self.model).__name__}, {said or f'{self.policy!r}, {self.substitute!r}'})"

    def _profile_notes(self, info: RunInfo) -> Sequence[str]:
        if info.profile is None:
            return ()
        return check_profile(
            info.profile,
            model=self.model,
            scheduler=self._scheduler,
            latent_shape=info.shape[1:],
            num_steps=info.num_steps,
            first_t=info.first_t,
            dtype=info.dtype,
        )


def _notes_of(denoiser: weakref.ref[CachedDenoiser]) -> Callable[[RunInfo], Sequence[str]]:
    """Return what notes differences from the profile; it does not keep the denoiser alive."""

    def notes(info: RunInfo) -> Sequence[str]:
        found = denoiser()
        return () if found is None else found._profile_notes(info)

    return notes


def _always(scheduler: Scheduler | None) -> Callable[[], Scheduler | None]:
    return lambda: scheduler


def _made_anew(arguments: dict[str, Any]) -> CachedDenoiser:
    return CachedDenoiser(**arguments)


def _branch_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise SettingsError(f'branch is {name!r}; name a branch by a word, for example "cond"')
    return name

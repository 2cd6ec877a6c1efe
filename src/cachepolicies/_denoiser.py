"""`CachedDenoiser`: any denoiser, called as before, evaluated less often."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen
from torch import Tensor, nn

from cachepolicies._assembly import assemble
from cachepolicies._call import Signature
from cachepolicies._engine import EngineSettings
from cachepolicies._errors import RunError, SettingsError
from cachepolicies._host import DeclaredTimesteps, host_time
from cachepolicies._policy import CachePolicy
from cachepolicies._run import Call, Declaration, rounding_of
from cachepolicies._settings import boolean, fraction, non_negative_int, one_of
from cachepolicies._step import RunInfo
from cachepolicies._substitute import Substitute
from cachepolicies._trace import Trace
from cachepolicies.adapters.base import Adapter
from cachepolicies.profiles.match import check_profile
from cachepolicies.profiles.schema import Profile
from cachepolicies.schedulers.base import Scheduler
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.sites.base import Invocation

DEFAULT_BRANCH = "default"


@frozen
class CachedDenoiserOptions:
    """The settings of the wrapper itself, checked."""

    cfg: str = field(validator=one_of("separate", "batched"))
    branches: str = field(validator=one_of("shared", "independent"))
    per_sample: bool = field(validator=boolean)
    audit: float = field(validator=fraction)
    audit_seed: int = field(validator=non_negative_int)


class CachedDenoiser:
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

    One wrapper serves one sampling at a time; it is not for concurrent use by several threads.

    Attributes:
        model: the wrapped model; its attributes (``parameters``, ``config``, ...) are reachable through the wrapper.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        policy: str | CachePolicy = "sencache",
        *,
        profile: Profile | str | Path | None = None,
        scheduler: Scheduler | str | Any | None = None,
        substitute: str | Substitute = "hold",
        site: str = "output",
        adapter: Adapter | None = None,
        cfg: Literal["separate", "batched"] = "separate",
        branches: Literal["shared", "independent"] = "shared",
        per_sample: bool = True,
        batched: Collection[str] | None = None,
        x_name: str | None = None,
        t_name: str | None = None,
        audit: float = 0.0,
        audit_seed: int = 0,
        **settings: Any,
    ) -> None:
        """Set up; everything that can be checked before the first call is checked here.

        Args:
            model: any callable ``f(x, t, *args, **kwargs)`` that returns a tensor, a tuple or list with a tensor
                first, or an object with a tensor ``.sample``. Elements behind the first are those of the last
                evaluation.
            policy: when to reuse: a registered name, a spec ``"sencache:epsilon=0.1,max_reuse=3"``, or an object.
            profile: what calibration measured: a `Profile`, or what `load_profile` takes.
            scheduler: the noise schedule in use, to check the profile against, to declare runs by their number of
                steps, and for what extrapolates in its time (else the profile's): a registered name, a diffusers
                scheduler or its class, or a `Scheduler`.
            substitute: what stands in for a skipped evaluation: a registered name, a spec, or an object.
            site: where the evaluation is cut: ``"output"``, which works with any callable; ``"blocks"``, the block
                stack of a network whose class has an adapter; or the path of one submodule. Inside the network, a
                wrapper around it names it by an attribute ``network``.
            adapter: for ``site="blocks"``, instead of the one registered for the network's class.
            cfg: ``"batched"`` if the batch is doubled for guidance, ``cat([x, x])``: both rows of a sample then follow
                one decision. ``"separate"`` otherwise; name the branch of every call.
            branches: whether the calls at one t share the decision of the first, or each branch decides for itself.
            per_sample: ``False`` for one decision for the whole batch.
            batched: names of the arguments with one row a sample; by default every tensor whose first dimension is
                the batch size.
            x_name: name of the latent argument, where it is not found by itself.
            t_name: name of the noise-level argument, where it is not found by itself.
            audit: fraction of the reused calls that is evaluated all the same, for the trace only.
            audit_seed: seed of that choice.
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
        options = CachedDenoiserOptions(cfg, branches, per_sample, audit, audit_seed)
        self.model = model
        self._scheduler = None if scheduler is None else as_scheduler(scheduler)
        self._branch: str | None = None
        assembly = assemble(
            model,
            policy,
            settings,
            profile=profile,
            substitute=substitute,
            site=site,
            adapter=adapter,
            engine_settings=lambda known: EngineSettings(
                copies=2 if options.cfg == "batched" else 1,
                per_sample=bool(options.per_sample),
                shared_branches=options.branches == "shared",
                audit=float(options.audit),
                audit_seed=int(options.audit_seed),
            ),
            notes=self._profile_notes,
            scheduler=lambda: self._scheduler,
        )
        self._engine, self._site = assembly.engine, assembly.site
        # the adapter knows the network's arguments, not those of a wrapper around it
        rows = None if assembly.adapter is None or not isinstance(model, nn.Module) else assembly.adapter.rows
        self._signature = Signature.of(model, x_name, t_name, batched, rows)
        if self.profile is not None and self._scheduler is not None:
            check_profile(self.profile, scheduler=self._scheduler)

    @property
    def policy(self) -> CachePolicy:
        """The policy with its settings."""
        return self._engine.policy

    @property
    def substitute(self) -> Substitute:
        """What stands in for a skipped evaluation."""
        return self._engine.substitute

    @property
    def site(self) -> str:
        """Where the evaluation is cut: ``"output"``, ``"blocks"`` or a submodule's path."""
        return self._site.name

    @property
    def profile(self) -> Profile | None:
        """What calibration measured, if the policy was given it."""
        return self._engine.profile

    @property
    def trace(self) -> Trace:
        """The record of the run in progress, or of the last one."""
        return self._engine.trace

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
        """Forget the run in progress and free what is cached. The trace stays."""
        self._site.reset()
        self._engine.reset()

    @contextmanager
    def run(
        self, timesteps: Sequence[float] | Tensor | None = None, *, num_steps: int | None = None
    ) -> Iterator[Trace]:
        """Declare a run: its timesteps, and that nothing is remembered before and after it.

        Args:
            timesteps: ``(N,)`` the t of every step, in the units and order the denoiser is called with. Give the
                sampler's own tensor if there is one: a t taken from it is then never read back from the device.
            num_steps: instead of ``timesteps``, when the wrapper was given a scheduler.

        Yields:
            The trace of the run.

        Raises:
            RunError: neither or both are given, ``num_steps`` without a scheduler, or a declared run is in progress.
            InputError: the timesteps are not a flat sequence of finite numbers.
        """
        if (timesteps is None) == (num_steps is None):
            raise RunError("declare a run by its timesteps or by num_steps, exactly one of them")
        if timesteps is None and num_steps is not None:
            if self._scheduler is None:
                raise RunError(f"num_steps={num_steps} needs a scheduler: CachedDenoiser(..., scheduler=...)")
            timesteps = self._scheduler.timesteps(num_steps)
        with self._engine.declared(Declaration(DeclaredTimesteps.of(timesteps))) as trace:
            try:
                yield trace
            finally:
                self._site.reset()

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """Name the guidance branch of the calls inside the context, as ``branch=`` does for one call."""
        outer, self._branch = self._branch, _branch_name(name)
        try:
            yield
        finally:
            self._branch = outer

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
        name = self._branch if branch is None else _branch_name(branch)
        declaration = self._engine.declaration
        try:
            x, t = self._signature.find(args, kwargs)
            level = host_time(t, x.shape[0], None if declaration is None else declaration.given)
        except BaseException:
            self.reset()
            raise
        if declaration is not None:
            level = declaration.snap(level, rounding_of(t))
        call = Call(x, level, name or DEFAULT_BRANCH, name is not None, self._signature.conditioning(args, kwargs))
        return self._site.serve(self._engine, call, Invocation(self.model, args, kwargs, self._signature, x))

    def to(self, *args: Any, **kwargs: Any) -> CachedDenoiser:
        """Move or cast the model as ``torch.nn.Module.to`` does, and return the wrapper."""
        getattr(self.model, "to")(*args, **kwargs)  # noqa: B009
        self.reset()
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "model" or name.startswith("__"):  # not there yet, or asked for by copy and the like
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

    def __repr__(self) -> str:
        return f"CachedDenoiser({type(self.model).__name__}, {self.policy!r}, {self.substitute!r})"

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


def _branch_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise SettingsError(f'branch is {name!r}; name a branch by a word, for example "cond"')
    return name

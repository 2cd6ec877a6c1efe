"""`enable`, `disable` and `trace`: caching in place, on a module or a diffusers pipeline."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen
from torch import Tensor, nn

from cachepolicies.assembly.assemble import Parts, as_policy, assemble
from cachepolicies.assembly.options import Options
from cachepolicies.assembly.run_handle import RunHandle
from cachepolicies.base.budget import as_budget
from cachepolicies.base.errors import RunError, SettingsError
from cachepolicies.base.foreign import cache_of_diffusers, hooks_of
from cachepolicies.base.host import DeclaredTimesteps
from cachepolicies.base.signature import Signature
from cachepolicies.contracts.adapter import Adapter
from cachepolicies.contracts.policy import CachePolicy, PolicySettings
from cachepolicies.contracts.site import Site
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.engine.together import Together
from cachepolicies.engine.trace import Trace, joined
from cachepolicies.inplace.clock import PipelineClock
from cachepolicies.inplace.targets import denoisers_of, left_alone, scheduler_of_pipeline
from cachepolicies.policies.limits import Limits
from cachepolicies.profiles.schema import Profile

if TYPE_CHECKING:
    from cachepolicies.inplace._hook import Installed
    from cachepolicies.inplace.binding import Binding


@frozen(eq=False)
class _Attached:
    """What is enabled on one module."""

    binding: Binding
    installed: Installed


def _attached_to(module: nn.Module) -> _Attached | None:
    """Return what is enabled on a module; it lives with the module's own hook, so nothing outlives the module."""
    registry = hooks_of(module)
    found = None if registry is None else getattr(registry.get_hook("cachepolicies"), "attached", None)
    return found if isinstance(found, _Attached) else None


class Enabled:
    """Caching that is enabled on a target; leaving its context disables it.

    Attributes:
        target: the module or pipeline.
        left_alone: its components that take a noise level too and are not cached, a ControlNet say: name to class.
    """

    def __init__(self, target: Any, bindings: Sequence[Binding]) -> None:
        self.target = target
        self._bindings = tuple(bindings)
        served = [binding.name for binding in bindings]
        self.left_alone = {name: type(module).__name__ for name, module in left_alone(target, served).items()}
        for name, kind in self.left_alone.items():
            self._bindings[0].remarks += (f"{name}, a {kind}, is left alone: it runs whenever the pipeline calls it",)

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """What serves each denoiser, in the order of the pipeline's components."""
        return self._bindings

    @property
    def trace(self) -> Trace:
        """The record of the run in progress, or of the last one; of two denoisers, one behind the other."""
        return _joined(self._bindings)

    @property
    def policy(self) -> CachePolicy:
        """The policy with its settings, the profile's included (of the first denoiser, where there are two)."""
        return self._bindings[0].engine.policy

    @property
    def settings(self) -> PolicySettings | None:
        """The policy as it was given, ``None`` where it was left out."""
        return self._bindings[0].assembly.settings

    def disable(self) -> None:
        """Restore what was enabled, also where the target has another denoiser now; see `disable`."""
        found = [each for binding in self._bindings if isinstance(each := binding.hook.attached, _Attached)]
        if found:
            _take_off(found)
        else:
            disable(self.target)

    def reset(self) -> None:
        """End every run in progress and free what is remembered. The traces stay."""
        for binding in self._bindings:
            binding.end_all()

    def run(self, timesteps: Sequence[float] | Tensor) -> RunHandle:
        """Declare a run, where no pipeline's scheduler tells of it.

        ```python
        with enabled.run(timesteps) as run:
            ...  # module(x, t), or run(x, t) where several runs are open in one function
        print(run.trace)
        ```

        Args:
            timesteps: ``(N,)`` the t of every step, as the module is called with.

        Returns:
            A context, which gives itself: the handle of the run. It has the trace, and calls the target.

        Raises:
            InputError: the timesteps are not a flat sequence of finite numbers.
            RunError: the pipeline has another scheduler by now, whose time the substitute does not follow.
        """
        declared = DeclaredTimesteps.of(timesteps)
        return RunHandle([binding.declared(declared) for binding in self._bindings], self.target)

    def __enter__(self) -> Enabled:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for binding in self._bindings:
                binding.end_all(failed=True)
        self.disable()

    def __repr__(self) -> str:
        what = ", ".join(
            f"{b.name}: {b.choice.sentence or repr(b.engine.policy)} at {b.site.name!r}" for b in self._bindings
        )
        rest = "".join(f"; left alone: {name}, a {kind}" for name, kind in self.left_alone.items())
        return f"Enabled({what}{rest})"


def enable(
    pipeline: Any,
    /,
    policy: str | PolicySettings | None = None,
    *,
    budget: int | float | str | None = None,
    target: str | None = None,
    profile: Profile | str | Path | Mapping[str, Profile | str | Path] | None = None,
    site: str | Site | None = None,
    substitute: str | Substitute | None = None,
    adapter: Adapter | None = None,
    limits: Limits | None = None,
    cfg: Literal["auto", "separate", "batched"] = "auto",
    branches: Literal["shared", "independent"] = "shared",
    per_sample: bool | None = None,
    batched: Collection[str] | None = None,
    x_name: str | None = None,
    t_name: str | None = None,
    audit: float = 0.0,
    audit_seed: int = 0,
    learn: bool | str | Path = True,
    **settings: Any,
) -> Enabled:
    """Cache the denoiser of a diffusers pipeline, or any module, in place.

    Nothing about ``pipe.transformer`` changes except what a call costs; `disable` undoes it. Runs and steps come from
    the pipeline's scheduler, guidance branches from diffusers' ``cache_context``, from the doubled batch, or from the
    conditioning of the calls:

    ```python
    cachepolicies.enable(pipe, policy="teacache", profile="flux.1-dev")
    image = pipe(prompt).images[0]
    print(cachepolicies.trace(pipe))
    cachepolicies.disable(pipe)
    ```

    Args:
        pipeline: a diffusers pipeline (its transformer, both transformers of Wan 2.2, or its U-Net), or a module.
        policy: when to reuse; left out, what is best: planned from the profile, else learned from the first generation,
            see ``learn``. A registered name, a spec ``"teacache:threshold=0.2"``, or an object.
        budget: what a generation may cost: a number of evaluations (22), a fraction of the uncached work (0.4), or a
            speed-up (``"2.5x"``); a half unless given. A policy with a threshold has it solved for.
        target: instead, what new samples shall have: ``"45dB"`` or ``"0.01rms"``; takes a profile with trials.
        profile: what calibration measured, or what was published; a mapping gives one for each denoiser by its name in
            the pipeline.
        site: where the evaluation is cut: ``"output"``, else this one where the policy is left out; ``"blocks"``, else
            this one; another registered name or a spec, the path of a submodule, or a `Site`.
        substitute: what stands in for a skipped evaluation; left out, what is best, and for a policy with settings of
            its own what it is published with, else ``"hold"``.
        adapter: for sites inside the network, instead of the one registered for its class.
        limits: laid around the policy: protected ends, most reuses in a row, most evaluations, a retention window.
        cfg: ``"batched"`` if the batch is doubled for guidance, ``"separate"`` if not; ``"auto"`` sees it from the
            latent that a run begins with.
        branches: whether the calls at one t share the decision of the first, or each branch decides for itself; a
            policy that says so itself (`CachePolicy.by_branch`) decides for each in any case.
        per_sample: whether every sample decides for itself; by default it does unless the adapter says that the samples
            of a batch depend on each other, or the arguments of a call cannot be cut by rows.
        batched: names of the arguments with one row a sample; by default as the adapter says, or every tensor whose
            first dimension is the batch size.
        x_name: name of the latent argument, where it is not found by itself.
        t_name: name of the noise-level argument, where it is not found by itself.
        audit: fraction of the reused calls that is evaluated all the same, for the trace only.
        audit_seed: seed of that choice.
        learn: where nothing is known of the model and no policy is named, the first generation is recorded, and later
            ones like it are planned. What is learned is kept in the user's cache folder, or in this folder; ``False``
            learns nothing, and evaluates steps spaced over the run.
        **settings: settings of the policy, when it is given by name.

    Returns:
        What is enabled: ``trace``, ``run`` and ``disable``; also a context that disables at its end.

    Raises:
        RunError: caching is enabled on it already, by this library or by diffusers' own ``enable_cache``.
        SettingsError: the target has no denoiser, or a setting is wrong.
        UnknownNameError, NeedsError, PolicyError, ProfileError: see `CachedDenoiser`.
    """
    from cachepolicies.inplace._hook import Installed  # with diffusers, which takes seconds to import

    modules = denoisers_of(pipeline)
    for name, module in modules.items():
        _refuse_second(name, module)
    if isinstance(profile, Mapping) and (strangers := sorted(set(profile) - set(modules))):
        raise SettingsError(f"profile is given for {strangers[0]!r}; the denoisers here are {', '.join(modules)}")
    named = as_policy(policy, settings) if isinstance(policy, PolicySettings) else policy
    asked = as_budget(budget, target)
    clock = None if isinstance(pipeline, nn.Module) else _clock(pipeline)
    options = Options(cfg, branches, per_sample, audit, audit_seed)
    attached: list[_Attached] = []
    try:
        for name, module in modules.items():
            given = profile.get(name) if isinstance(profile, Mapping) else profile
            own = settings if isinstance(named, str) or named is None else {}
            parts = Parts(named, own, given, substitute, site, adapter, limits, asked, learn, "blocks")
            part = len(modules) > 1
            binding = _bind(
                clock, name, module, parts, options, part=part, batched=batched, x_name=x_name, t_name=t_name
            )
            each = _Attached(binding, Installed(module, binding.hook))
            binding.hook.attached = each
            attached.append(each)
    except BaseException:
        for each in attached:
            _remove(each)
        raise
    return Enabled(pipeline, [each.binding for each in attached])


def disable(target: Any) -> None:
    """Take caching off a module or pipeline again, and leave it exactly as it was.

    Raises:
        RunError: nothing is enabled on it, or its forward was replaced by something else since.
    """
    _take_off(_all_attached(target, "disable"))


def trace(target: Any) -> Trace:
    """Return the record of the last run of a module or pipeline with caching enabled.

    Raises:
        RunError: nothing is enabled on it.
    """
    return _joined([each.binding for each in _all_attached(target, "trace")])


def _joined(bindings: Sequence[Binding]) -> Trace:
    """Return the traces of a pipeline's last run as one."""
    several = len(bindings) > 1
    traces = [
        (b.name, Trace(b.trace.policy, b.trace.substitute) if several and b.outdated else b.trace) for b in bindings
    ]
    return joined(traces)


def _clock(pipeline: Any) -> PipelineClock:
    owner = weakref.ref(pipeline)
    return PipelineClock(
        lambda: getattr(owner(), "scheduler", None),
        guidance=lambda: getattr(owner(), "do_classifier_free_guidance", None),
        scale=lambda: _number(getattr(owner(), "guidance_scale", None)),
        guider=lambda: getattr(owner(), "guider", None),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _bind(
    clock: PipelineClock | None,
    name: str,
    module: nn.Module,
    parts: Parts,
    options: Options,
    *,
    part: bool,
    batched: Collection[str] | None,
    x_name: str | None,
    t_name: str | None,
) -> Binding:
    from cachepolicies.inplace.binding import Binding

    bound: list[weakref.ref[Binding]] = []

    def notes(info: RunInfo) -> Sequence[str]:
        found = bound[0]()
        return () if found is None else found.notes(info)

    assembly = assemble(
        module,
        parts,
        engine_settings=options.for_engine,
        notes=notes,
        scheduler=lambda: None if clock is None else scheduler_of_pipeline(clock.scheduler()),
        or_of_profile=clock is None or clock.scheduler() is None,
        part=part,
        guidance=lambda: None if clock is None else clock.scale(),
    )
    known = assembly.adapter
    signature = Signature.of(module, x_name, t_name, batched, None if known is None else known.rows)
    if t_name is None:
        signature.refuse_without_level(module)
    if clock is not None and known is not None:
        clock.form = known.clock
    binding = Binding(name, module, assembly, signature, clock, Together(asked=options.per_sample is True))
    bound.append(weakref.ref(binding))
    return binding


def _refuse_second(name: str, module: nn.Module) -> None:
    found = _attached_to(module)
    if found is not None:
        binding = found.binding
        raise RunError(
            f"caching is enabled on {name} already: {binding.engine.policy!r} at site {binding.site.name!r}; "
            "cachepolicies.disable it first"
        )
    config = cache_of_diffusers(module)
    if config is not None:
        raise RunError(f"diffusers' own cache is enabled on {name} ({config}); call its disable_cache() first")


def _all_attached(target: Any, what: str) -> list[_Attached]:
    modules = denoisers_of(target)
    found = [each for module in modules.values() if (each := _attached_to(module)) is not None]
    if not found:
        raise RunError(
            f"cannot {what}: caching is not enabled on {', '.join(modules)} of this {type(target).__name__}; "
            "cachepolicies.enable it first"
        )
    return found


def _take_off(attached: Sequence[_Attached]) -> None:
    for each in attached:
        _remove(each)
    for each in attached:  # only now: what a run's end warns of may be raised
        each.binding.end_all()


def _remove(attached: _Attached) -> None:
    attached.installed.remove()
    attached.binding.hook.attached = None
    attached.binding.hook.release()

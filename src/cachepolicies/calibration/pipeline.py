"""Calibrating a diffusers pipeline by running it: path, errors and sensitivities in one generation, weights in more."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from attrs import define, field, frozen
from numpy.typing import NDArray
from torch import Tensor, nn

from cachepolicies.base.errors import InputError, ProfileError, RunError, SettingsError
from cachepolicies.base.models import config_hash, weights_hash
from cachepolicies.base.outputs import tensor_of
from cachepolicies.base.settings import shown
from cachepolicies.base.units import row_rms
from cachepolicies.calibration.blocks import BlockWatch, fitted, probe_of
from cachepolicies.calibration.measure import BatchMeasurements
from cachepolicies.calibration.partial import PartialResults
from cachepolicies.calibration.trials import evaluations_bar
from cachepolicies.calibration.weights import weight_steps
from cachepolicies.engine.call import Call, Declaration
from cachepolicies.engine.choice import Chosen
from cachepolicies.engine.engine import Engine
from cachepolicies.inplace import enable
from cachepolicies.inplace.targets import denoisers_of, scheduler_of_pipeline
from cachepolicies.learning.profile import profile_of
from cachepolicies.learning.recorder import MOST_SAMPLES, RecordedRun
from cachepolicies.learning.sensitivities import NAMES, SensitivityRecorder
from cachepolicies.learning.subject import fingerprint
from cachepolicies.policies.schedule import FollowsSteps
from cachepolicies.profiles.schema import Curve, ModelInfo, Profile, SchedulerInfo

if TYPE_CHECKING:
    from rich.console import Console

    from cachepolicies.engine.invocation import Invocation
    from cachepolicies.engine.watch import Watch
    from cachepolicies.sites.probe import BlocksProbe

_PER_STEP = 3
"""Evaluations of a step of the first generation: its own and two for the sensitivities; one more to see the blocks."""


def is_pipeline(target: object) -> bool:
    """Whether something is a pipeline, with components of which one is called at every step."""
    return not isinstance(target, nn.Module) and isinstance(getattr(target, "components", None), dict)


def calibrate_pipeline(
    pipeline: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    *,
    num_inference_steps: int,
    seeds: Sequence[int] | None = None,
    name: str | None = None,
    weights: bool | int | None = None,
    hash_weights: bool = True,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    console: Console | None = None,
    notes: str = "",
    **call: Any,
) -> Profile | dict[str, Profile]:
    """Calibrate the denoisers of a pipeline where they run.

    For every prompt the pipeline runs once in full, with two further evaluations a step for the sensitivities, a third
    where the block stack is known, for what MagCache and TeaCache look at; and once more for every weight: step k is
    reused alone, with the output of step k - 1, and the final latents are compared,
    ``weight(t_k) = rms(latents' - latents) / rms(y_{k-1} - y_k)``. Everything that `cachepolicies.enable` takes can be
    calibrated: guidance in one batch or in separate calls, two denoisers one after the other, ControlNet, image to
    video.

    Memory is bounded: of latents and outputs projections of 64 kB are kept; see `cachepolicies.base.projection`. Of
    two guidance passes the distances are those of what the sampler sees, where the pipeline says its scale.

    Args:
        pipeline: a diffusers pipeline.
        prompts: what to generate, each with ``prompt=``; or the arguments that differ from one generation to the next,
            such as ``{"prompt": ..., "image": ...}``.
        num_inference_steps: N.
        seeds: of the generators, one a prompt; 0, 1, ... if ``None``.
        name: of the profile; ``"<class>-<scheduler>-<N>"`` in lower case if ``None``.
        weights: which steps get a weight; see `cachepolicies.calibration.weight_steps`. Step 0 cannot be reused: step 1
            stands for it.
        hash_weights: record the sha256 of the weights; reads them all once.
        checkpoint: folder for finished prompts, so that an interrupted calibration resumes.
        progress: show the number of evaluations and a progress bar on stderr.
        console: where to show it instead.
        notes: free text for the profile.
        **call: further arguments of the pipeline's own call.

    Returns:
        The profile; of a pipeline with two denoisers one for each, by its name there, as ``enable(profile=...)`` takes.

    Raises:
        SettingsError: no prompt, no seed for one, or the target is no pipeline.
        ProfileError: what was seen of a generation cannot be made a profile of: a sampler with two evaluations a step,
            branches that come and go, an output that never changes; or the checkpoint is damaged or another's.
        InputError: an output or the final latents are not finite.
    """
    if isinstance(prompts, str) or not prompts:
        raise SettingsError(f"prompts is {shown(prompts)}; give a sequence of prompts, at least one")
    drawn = tuple(range(len(prompts))) if seeds is None else tuple(seeds)
    if len(drawn) != len(prompts):
        raise SettingsError(f"{len(drawn)} seeds for {len(prompts)} prompts; give one each")
    modules = denoisers_of(pipeline)
    wanted = [k for k in weight_steps(num_inference_steps, weights) if k] if num_inference_steps > 1 else []
    if wanted and 1 not in wanted and num_inference_steps > 2:
        wanted.insert(0, 1)
    probes = {each: probe_of(module, None) for each, module in modules.items()}
    runs = _Generations(pipeline, {**call, "num_inference_steps": num_inference_steps}, probes)
    partial = None
    if checkpoint is not None:
        basis = _basis(pipeline, modules, prompts, drawn, wanted, probes, runs.call)
        partial = {each: PartialResults(Path(checkpoint) / each, basis | {"denoiser": each}) for each in modules}
    done: dict[str, list[BatchMeasurements]] = {
        each: [] if partial is None else partial[each].read() for each in modules
    }
    seen: dict[str, _Recorded] = {}
    unseen: dict[str, str] = {}
    per_step = _PER_STEP + any(probe is not None for probe in runs.probes.values())
    total = len(prompts) * num_inference_steps * (per_step + len(wanted))
    what = f"calibrating {type(pipeline).__name__}, steps of all branches together"
    with evaluations_bar(what, total, progress, console) as advance, _quiet(pipeline):
        for number, (prompt, seed) in enumerate(zip(prompts, drawn, strict=True)):
            if all(len(batches) > number and batches[number].start == number for batches in done.values()):
                advance(num_inference_steps * (per_step + len(wanted)))
                continue
            found, reference = runs.recorded(prompt, seed, lambda n: advance(n))
            seen.update(found)
            unseen |= {each: run.unseen for each, run in found.items() if run.unseen is not None}
            made = _measured(runs, found, reference, wanted, prompt, seed, number, lambda n: advance(n))
            for each, measurements in made.items():
                done[each].append(measurements)
                if partial is not None:
                    partial[each].add(measurements)
    if not seen:  # everything was read from the checkpoint: one generation says what the numbers do not
        seen, _ = runs.recorded(prompts[0], drawn[0], lambda n: None)
    profiles = {
        each: _profile(
            pipeline,
            each,
            modules[each],
            seen,
            done[each],
            wanted,
            drawn,
            name=name if len(modules) == 1 or name is None else f"{name}-{each}",
            hash_weights=hash_weights,
            notes="; ".join(text for text in (notes, unseen.get(each, "")) if text),
        )
        for each in modules
        if each in seen
    }
    if not profiles:
        raise ProfileError(f"{type(pipeline).__name__}: none of its denoisers was called: {', '.join(modules)}")
    return next(iter(profiles.values())) if len(modules) == 1 else profiles


@define(eq=False)
class _Chosen:
    """Serves every run of one denoiser with an engine of the moment, and hands on what was recorded."""

    latest: Engine
    name: str
    sentence: str = ""
    policy: FollowsSteps | None = None
    advance: Callable[[int], object] = lambda n: None
    recorded: list[RecordedRun] = field(factory=list)
    refused: list[str] = field(factory=list)
    recording: bool = True
    part: bool = False
    guidance: Callable[[], float | None] = lambda: None
    probe: BlocksProbe | None = None

    def choose(self, call: Call, declaration: Declaration | None) -> Chosen:
        """Return an engine that records, or one that reuses a single step."""
        watch: Watch | None = None
        if self.recording:
            watch = _Counting(
                self.recorded.append,
                self.refused.append,
                part=self.part,
                guidance=self.guidance(),
                advance=self.advance,
                probe=self.probe,
            )
        engine = self.latest if self.policy is None else attrs.evolve(self.latest, policy=self.policy)
        # the step that is reused may be another denoiser's: that nothing is reused here is no news to anybody
        return Chosen(attrs.evolve(engine, watch=watch, warned={"no reuse", "few steps"}))

    def unexpected(self, engine: Engine) -> Engine:
        """Return the engine: nothing is expected."""
        return engine


@frozen(eq=False)
class _Recorded(RecordedRun):
    """What a calibration saw of a run.

    Attributes:
        stack: tables of the block stack by name, ``(N, S)`` or ``(N - 1, S)`` float64; none where it is not known.
        unseen: why there are none, where the stack is known.
    """

    stack: Mapping[str, NDArray[np.float64]] = field(factory=dict, repr=False)
    unseen: str | None = None


@define(eq=False)
class _Counting(SensitivityRecorder):
    """Records, looks at the block stack, and advances a progress bar by the evaluations of the first branch."""

    advance: Callable[[int], object] = field(kw_only=True)
    probe: BlocksProbe | None = field(kw_only=True)
    _stacks: dict[str, BlockWatch] = field(factory=dict, init=False)
    _unseen: str | None = field(default=None, init=False)

    def called(self, call: Call, invocation: Invocation) -> int:
        """Measure, and count."""
        first, made, at_work = next(iter(self._seen), call.branch), 0, self._wrong is None
        if self.probe is not None and at_work and self._unseen is None:
            made += self._look(self.probe, call, invocation)
        made += super().called(call, invocation)
        if call.branch == first:
            self.advance(_PER_STEP + (self.probe is not None))
        return made

    def _look(self, probe: BlocksProbe, call: Call, invocation: Invocation) -> int:
        stack = self._stacks.setdefault(call.branch, BlockWatch(probe, 0))
        level = torch.tensor([call.t], dtype=torch.float64)
        try:
            with torch.no_grad():
                stack.evaluate(lambda x, t: tensor_of(invocation.run_at()), invocation.x, level)
        except (ProfileError, InputError, RunError) as error:  # of the tables alone: the note in the profile says it
            self._unseen = f"nothing was seen of the block stack: {error}"
        return 1

    def recorded(self, run: RecordedRun) -> RecordedRun:
        """Return the run with the tables of the stack, the mean over the branches."""
        stack: dict[str, NDArray[np.float64]] = {}
        if self._stacks and self._unseen is None:
            tables = [each.tables() for each in self._stacks.values()]
            stack = {name: self._mean_of_rows(np.mean([each[name] for each in tables], axis=0)) for name in tables[0]}
        own = attrs.asdict(run, recurse=False)
        return _Recorded(**own, stack=stack, unseen=self._unseen)

    def _mean_of_rows(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        assert self._layout is not None
        groups = [list(self._layout.rows_of(d)) for d in range(min(self._layout.decisions, MOST_SAMPLES))]
        return np.stack([table[:, group].mean(axis=1) for group in groups], axis=1)


@frozen(eq=False)
class _Generations:
    """Runs a pipeline, recording or with one step reused."""

    pipeline: Any
    call: Mapping[str, Any]
    probes: Mapping[str, BlocksProbe | None]

    def recorded(
        self, prompt: str | Mapping[str, Any], seed: int, advance: Callable[[int], object]
    ) -> tuple[dict[str, _Recorded], Tensor | None]:
        """Return what a full generation showed of each denoiser, and the final latents.

        Raises:
            ProfileError: it cannot be made a profile of.
        """
        with self._enabled() as choices:
            for name, choice in choices.items():
                choice.advance, choice.probe = advance, self.probes[name]
            latents = self._run(prompt, seed)
        found = {}
        for name, choice in choices.items():
            if choice.refused:
                raise ProfileError(
                    f"{type(self.pipeline).__name__}.{name} cannot be calibrated on this generation: "
                    f"{choice.refused[0]}"
                )
            if choice.recorded:
                run = choice.recorded[-1]
                assert isinstance(run, _Recorded)
                found[name] = run
        return found, latents

    def perturbed(self, prompt: str | Mapping[str, Any], seed: int, step: int, num_steps: int) -> Tensor | None:
        """Return the final latents of a generation in which one step is reused, for all denoisers."""
        steps = tuple(k for k in range(num_steps) if k != step)
        with self._enabled() as choices:
            for choice in choices.values():
                choice.recording = False
                choice.policy = FollowsSteps(steps, None, num_steps)
            return self._run(prompt, seed)

    @contextlib.contextmanager
    def _enabled(self) -> Iterator[dict[str, _Chosen]]:
        with enable(self.pipeline, "never", site="output", learn=False) as enabled:
            choices = {}
            for binding in enabled.bindings:
                made = _Chosen(
                    binding.choice.latest, binding.name, part=len(enabled.bindings) > 1, guidance=binding.guidance
                )
                choices[binding.name] = binding.choice = made
            yield choices

    def _run(self, prompt: str | Mapping[str, Any], seed: int) -> Tensor | None:
        own: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
        takes = inspect.signature(self.pipeline.__call__).parameters
        if "generator" in takes and "generator" not in {*self.call, *own}:
            own["generator"] = torch.Generator("cpu").manual_seed(seed)
        if "output_type" in takes and "output_type" not in {*self.call, *own}:
            own["output_type"] = "latent"
        with _last_latents(self.pipeline) as last, torch.no_grad():
            self.pipeline(**{**self.call, **own})
        if last and not bool(torch.isfinite(last[-1]).all()):
            raise InputError(f"the final latents of prompt {shown(prompt)} are not finite; check dtype and scheduler")
        return last[-1] if last else None


@contextlib.contextmanager
def _last_latents(pipeline: Any) -> Iterator[list[Tensor]]:
    """Keep the latents that the pipeline's scheduler returned last, whatever the pipeline makes of them."""
    scheduler = getattr(pipeline, "scheduler", None)
    kept: list[Tensor] = []
    if scheduler is None or not callable(getattr(scheduler, "step", None)):
        yield kept
        return
    step = scheduler.step

    def stepped(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        kept[:] = [latents.detach().clone()]
        return result

    had = "step" in vars(scheduler)
    scheduler.step = stepped
    try:
        yield kept
    finally:
        if had:
            scheduler.step = step
        else:
            del scheduler.step


@contextlib.contextmanager
def _quiet(pipeline: Any) -> Iterator[None]:
    """Leave out the pipeline's own progress bars for the length of the context."""
    set_config = getattr(pipeline, "set_progress_bar_config", None)
    if set_config is None:
        yield
        return
    had = dict(getattr(pipeline, "_progress_bar_config", {}))
    set_config(**{**had, "disable": True})
    try:
        yield
    finally:
        pipeline._progress_bar_config = had


def _measured(
    runs: _Generations,
    found: Mapping[str, _Recorded],
    reference: Tensor | None,
    wanted: Sequence[int],
    prompt: str | Mapping[str, Any],
    seed: int,
    number: int,
    advance: Callable[[int], object],
) -> dict[str, BatchMeasurements]:
    """Return the measurements of one prompt by denoiser: the weights are those of its own steps."""
    total = sum(len(run.timesteps) for run in found.values())
    changes: dict[int, NDArray[np.float64]] = {}
    for step in wanted if reference is not None else ():
        latents = runs.perturbed(prompt, seed, step, total)
        advance(total)
        assert latents is not None
        assert reference is not None
        changes[step] = row_rms(latents.double() - reference.double()).cpu().numpy()
    made = {}
    for name, run in found.items():
        start = _starts(found)[name]
        weights = [_weight(changes[k], run.change[k - 1 - start, k - start]) for k in _own(wanted, run, start)]
        if reference is None:
            weights = []
        made[name] = BatchMeasurements(
            start=number,
            stop=number + 1,
            weight=np.stack(weights) if weights else np.empty((0, run.change.shape[2])),
            displacement=run.displacement,
            change=run.change,
            blocks=run.stack,
            **{what: run.curves[what] for what in NAMES},
        )
    return made


def _starts(found: Mapping[str, RecordedRun]) -> dict[str, int]:
    """Return at which step of the whole run each denoiser takes over, in the order of the pipeline's components."""
    starts, at = {}, 0
    for name, run in found.items():
        starts[name] = at
        at += len(run.timesteps)
    return starts


def _own(wanted: Sequence[int], run: RecordedRun, start: int) -> list[int]:
    """Return which of the steps that get a weight can be reused by a denoiser: its own, but for its first."""
    return [k for k in wanted if start < k < start + len(run.timesteps)]


def _weight(change: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of a step for every sample of a batch; the final latents may have other rows than it."""
    of_samples = np.sqrt(np.mean(change**2)) if len(change) != len(size) else change
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = np.where(size > 0, of_samples / size, 0.0)
    return found


def _profile(
    pipeline: Any,
    which: str,
    module: nn.Module,
    found: Mapping[str, RecordedRun],
    batches: Sequence[BatchMeasurements],
    wanted: Sequence[int],
    seeds: Sequence[int],
    *,
    name: str | None,
    hash_weights: bool,
    notes: str,
) -> Profile:
    def joined(what: str) -> Any:
        return np.concatenate([getattr(batch, what) for batch in batches], axis=-1)

    seen = found[which]
    scheduler = scheduler_of_pipeline(getattr(pipeline, "scheduler", None))
    scale = getattr(pipeline, "guidance_scale", None)
    guidance = float(scale) if isinstance(scale, (int, float)) and not isinstance(scale, bool) else None
    made = profile_of(seen, module, scheduler, guidance)
    kind, samples, weight = made.model.class_name, joined("change").shape[2], joined("weight")
    curves = {what: Curve(seen.timesteps[:-1], joined(what)) for what in NAMES}
    known = set.intersection(*(set(batch.blocks) for batch in batches))
    stack = {what: np.concatenate([batch.blocks[what] for batch in batches], axis=-1) for what in sorted(known)}
    polynomials, problems = fitted(stack)
    start = _starts(found)[which]
    if len(weight):
        curves["weight"] = Curve([seen.timesteps[k - start] for k in _own(wanted, seen, start)], weight)
    unweighed = "no weights: the pipeline asks its scheduler for no step" if wanted and not len(weight) else ""
    called = "" if scheduler is None else f"-{scheduler.name}"
    said = (notes, f"{type(pipeline).__name__}.{which}, {made.notes}", unweighed, *problems)
    return attrs.evolve(
        made,
        name=f"{kind}{called}-{len(seen.timesteps)}".lower() if name is None else name,
        model=ModelInfo(kind, config_hash(module), weights_hash(module) if hash_weights else None),
        samples=samples,
        seeds=tuple(seeds) if samples == len(seeds) else (),
        evaluations=made.evaluations * (_PER_STEP + bool(stack) + len(wanted)),
        curves=curves,
        tables={what: joined(what) for what in ("displacement", "change")} | stack,
        polynomials=polynomials,
        notes="; ".join(text for text in said if text),
    )


def _basis(
    pipeline: Any,
    modules: Mapping[str, nn.Module],
    prompts: Sequence[str | Mapping[str, Any]],
    seeds: Sequence[int],
    wanted: Sequence[int],
    probes: Mapping[str, BlocksProbe | None],
    call: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the numbers depend on, as plain JSON; a checkpoint serves one such set."""
    scheduler = scheduler_of_pipeline(getattr(pipeline, "scheduler", None))
    settings = {
        "pipeline": type(pipeline).__name__,
        "weights of the denoisers": {name: fingerprint(module) for name, module in modules.items()},
        "scheduler": None if scheduler is None else attrs.asdict(SchedulerInfo.of(scheduler)),
        "prompts": [_told(prompt) for prompt in prompts],
        "seeds": list(seeds),
        "weights": list(wanted),
        "blocks": {each: None if probe is None else sorted(probe.signals) for each, probe in probes.items()},
        "call": _told(call),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _told(value: Any) -> Any:
    """Return arguments as plain JSON: a tensor by its digest, what is neither plain nor a tensor by its class."""
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(item) for item in value]
    if isinstance(value, Tensor):
        return fingerprint(_Holder(value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__qualname__


class _Holder(nn.Module):
    """Holds one tensor, to be told from others as a network is by its weights."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("tensor", tensor)

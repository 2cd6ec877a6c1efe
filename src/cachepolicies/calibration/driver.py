"""`calibrate_denoiser`: batch after batch, with a progress bar and a checkpoint, into a profile."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from torch import Tensor, nn

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.models import config_hash, digest_tensor, dtype_name, model_class_name, weights_hash
from cachepolicies.base.provenance import utc_now, versions_of
from cachepolicies.calibration.blocks import fitted, probe_of
from cachepolicies.calibration.count import EvaluationCount, evaluations_needed, has_next_point, steps_weighed
from cachepolicies.calibration.measure import BatchMeasurements, measure_batch
from cachepolicies.calibration.partial import PartialResults
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.profiles.schema import Curve, ModelInfo, Profile, SchedulerInfo, Trajectory
from cachepolicies.schedulers.conventions import Convention, in_convention
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.sites.probe import BlocksProbe

if TYPE_CHECKING:
    from rich.console import Console


def calibrate_denoiser(
    model: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    *,
    num_steps: int = 50,
    trajectory: Trajectory = "model",
    batch_size: int | None = None,
    name: str | None = None,
    guidance: float | None = None,
    seeds: Sequence[int] | None = None,
    model_class: str | None = None,
    hash_weights: bool = True,
    blocks: bool | None = None,
    weights: bool | int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    console: Console | None = None,
    notes: str = "",
    convention: str | Convention | None = None,
) -> Profile:
    """Measure how fast a denoiser's output changes along the solver's own steps.

    At every step k, with (x_k, t_k) the denoiser's input at the first evaluation of the step,

    ``alpha_x(t_k) = rms(f(x_{k+1}, t_k) - f(x_k, t_k)) / rms(x_{k+1} - x_k)``
    ``alpha_t(t_k) = rms(f(x_k, t_{k+1}) - f(x_k, t_k)) / |t_{k+1} - t_k|``

    (SenCache, arXiv 2602.24208, eqs. 11 and 12; norms are RMS per element here), rho(t_k), the correlation of these two
    differences (1 where one of them is zero), and between every two steps the displacement rms(x_k - x_r) and the
    change rms(f(x_k, t_k) - f(x_r, t_r)). The point after the last step is the sample at the scheduler's ``final_t``;
    where there is none, the curves end one step earlier.

    The weight of a step says how much an error of the output there changes the sample: step k is reused alone, with the
    output of step k - 1 (at step 0, with that of step 1), and sampled on with the model to the end,

    ``weight(t_k) = rms(sample' - sample) / rms(y_{k-1} - y_k)``.

    Of samplers with two evaluations a step only the first is perturbed. `evaluations_needed` counts all evaluations
    beforehand.

    Deterministic for the same samples and seeds; the batch size changes nothing but rounding. Memory holds the N
    latents of one batch and the outputs of all its evaluations.

    Args:
        model: ``f(x, t, *args, **kwargs)``, x ``(B, ...)`` and t ``(B,)``; returns a tensor, a tuple or list with a
            tensor first, or an object with ``.sample``. Put modules in evaluation mode.
        scheduler: the scheduler that the denoiser will be sampled with: whatever `as_scheduler` takes.
        samples: noise, conditioning, data and seeds.
        num_steps: N.
        trajectory: ``"model"`` follows the model's own runs; ``"noised"`` evaluates on
            ``alpha(t) data + sigma(t) noise`` with one noise for all t, and takes no sampler steps.
        batch_size: samples evaluated together; 8 if None, or 1 with a checkpoint, which keeps whole batches.
        name: of the profile; ``"<model class>-<scheduler>-<N>"`` in lower case if None.
        guidance: guidance scale inside ``model``, recorded only.
        seeds: instead of ``samples.seeds``.
        model_class: name to record instead of `cachepolicies.profiles.model_class_name`'s.
        hash_weights: record the sha256 of the weights; reads them all once.
        blocks: whether to measure, in the same evaluations, what MagCache and TeaCache need of the block stack: the
            table ``magnitude_ratio``, the relative changes of the signals and of the output, and a polynomial of one in
            the other for every signal. ``None``: if the model is a network whose stack is known, or names one by an
            attribute ``network``.
        weights: measure the weight of every m-th step and of the last m: ``True`` or 1 is every step, which takes
            N (N - 1) / 2 evaluations more; ``False`` or 0 none; ``None`` six evenly spaced ones and the last but
            one, about 3 N evaluations more. There are none on noised data, nor for a single step.
        checkpoint: folder for finished batches, so that an interrupted calibration resumes. Kept when done: clear it
            with `clear_checkpoint` once the profile is saved.
        progress: show the number of evaluations and a progress bar on stderr.
        console: where to show it instead.
        notes: free text for the profile.
        convention: how the model counts t and which way its velocity points, where not as diffusers does: a name of
            `cachepolicies.schedulers.CONVENTIONS`. The profile counts as this library does. A named convention is
            checked: where the samples seem not to arrive at data, the others are tried, at ten evaluations each.

    Returns:
        The profile, not yet saved.

    Raises:
        InputError: the denoiser's output is no tensor, of another batch size or not finite; names t and sample.
        ProfileError: the samples do not arrive at data in this convention, and do in another, which is named; x or t
            does not change over a step, the output never changes (with weights only), or the
            checkpoint is damaged or another calibration's.
        RunError: the scheduler visits other t than it announces.
        SettingsError: a setting is out of range, or seeds or data are missing.
        UnknownNameError: no scheduler is registered under the name.
    """
    scheduler = as_scheduler(scheduler)
    model = in_convention(model, convention)
    probe = probe_of(model, blocks)
    if batch_size is None:
        batch_size = 8 if checkpoint is None else 1
    if seeds is not None:
        samples = attrs.evolve(samples, seeds=tuple(seeds))
    _check_calibration(scheduler, samples, trajectory, batch_size)
    count = evaluations_needed(scheduler, num_steps, len(samples), trajectory, weights)
    weighed = steps_weighed(num_steps, trajectory, weights)
    draft = _draft(
        model,
        scheduler,
        samples,
        count,
        num_steps=num_steps,
        trajectory=trajectory,
        name=name,
        guidance=guidance,
        model_class=model_class,
        hash_weights=hash_weights,
        notes=notes,
    )
    partial = (
        None if checkpoint is None else PartialResults(Path(checkpoint), _basis_of(draft, samples, probe, weighed))
    )
    batches = [] if partial is None else partial.read()
    done = batches[-1].stop if batches else 0
    with _progress_bar(draft.name, count, done, show=progress, console=console) as evaluated:
        for start in range(done, len(samples), batch_size):
            batch = measure_batch(
                model,
                scheduler,
                samples.rows(start, min(start + batch_size, len(samples))),
                start=start,
                num_steps=num_steps,
                trajectory=trajectory,
                evaluated=evaluated,
                probe=probe,
                weighed=weighed,
                check=convention is not None and start == 0,
            )
            if partial is not None:
                partial.add(batch)
            batches.append(batch)
    return _assemble(draft, scheduler, batches, weighed)


def _check_calibration(scheduler: Scheduler, samples: CalibrationSamples, trajectory: str, batch_size: int) -> None:
    if trajectory not in ("model", "noised"):
        raise SettingsError(f"trajectory={trajectory!r} is unknown; choose 'model' or 'noised'")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingsError(f"batch_size={batch_size!r}; give a positive integer")
    if trajectory == "noised" and samples.data is None:
        raise SettingsError("trajectory='noised' needs clean latents; give CalibrationSamples(data=...)")
    if trajectory == "model" and scheduler.stochastic and not samples.seeds:
        raise SettingsError(
            f"scheduler {scheduler.name!r} draws noise, so calibration needs a seed per sample; "
            "give CalibrationSamples(seeds=...) or seeds=..."
        )


def _draft(
    model: Callable[..., Any],
    scheduler: Scheduler,
    samples: CalibrationSamples,
    count: EvaluationCount,
    *,
    num_steps: int,
    trajectory: Trajectory,
    name: str | None,
    guidance: float | None,
    model_class: str | None,
    hash_weights: bool,
    notes: str,
) -> Profile:
    """Return the profile without curves and tables: all that is known before the first evaluation."""
    class_name = model_class_name(model) if model_class is None else model_class
    if isinstance(model, nn.Module) and model.training:
        warning = "the module was in training mode"
        notes = f"{notes}; {warning}" if notes else warning
    return Profile(
        name=f"{class_name}-{scheduler.name}-{num_steps}".lower() if name is None else name,
        model=ModelInfo(class_name, config_hash(model), weights_hash(model) if hash_weights else None),
        prediction_type=scheduler.prediction_type,
        latent_shape=tuple(samples.noise.shape[1:]),
        scheduler=SchedulerInfo.of(scheduler),
        timesteps=scheduler.timesteps(num_steps),
        final_t=scheduler.final_t,
        dtype=dtype_name(samples.noise.dtype),
        guidance=guidance,
        samples=len(samples),
        seeds=samples.seeds,
        trajectory=trajectory,
        evaluations=count.per_sample,
        versions=versions_of("torch", "cachepolicies", "diffusers", "numpy"),
        created=utc_now(),
        notes=notes,
    )


def _assemble(
    draft: Profile, scheduler: Scheduler, batches: Sequence[BatchMeasurements], weighed: Sequence[int]
) -> Profile:
    pairs = draft.num_steps if has_next_point(scheduler, draft.timesteps) else draft.num_steps - 1

    def joined(what: str) -> Any:
        return np.concatenate([getattr(batch, what) for batch in batches], axis=-1)

    stack = {key: np.concatenate([batch.blocks[key] for batch in batches], axis=-1) for key in batches[0].blocks}
    polynomials, problems = fitted(stack)
    curves = {what: Curve(draft.timesteps[:pairs], joined(what)) for what in ("alpha_x", "alpha_t", "rho")}
    if weighed:
        curves["weight"] = Curve([draft.timesteps[k] for k in weighed], joined("weight"))
    return attrs.evolve(
        draft,
        curves=curves,
        tables={what: joined(what) for what in ("displacement", "change")} | stack,
        polynomials=polynomials,
        notes="; ".join(text for text in (draft.notes, *problems) if text),
    )


def _basis_of(
    draft: Profile, samples: CalibrationSamples, probe: BlocksProbe | None, weighed: Sequence[int]
) -> dict[str, Any]:
    """Return what the numbers depend on, as plain JSON; a checkpoint serves one such set."""
    digest = hashlib.sha256()
    _digest_inputs(digest, (samples.noise, samples.data, samples.args, dict(samples.kwargs)))
    settings = {
        "model": attrs.asdict(draft.model),
        "prediction_type": draft.prediction_type,
        "latent_shape": draft.latent_shape,
        "scheduler": None if draft.scheduler is None else attrs.asdict(draft.scheduler),
        "timesteps": draft.timesteps,
        "final_t": draft.final_t,
        "dtype": draft.dtype,
        "guidance": draft.guidance,
        "samples": draft.samples,
        "seeds": draft.seeds,
        "trajectory": draft.trajectory,
        "blocks": None if probe is None else sorted(probe.signals),
        "weights": list(weighed),
        "inputs": digest.hexdigest(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _digest_inputs(digest: Any, item: Any) -> None:
    if isinstance(item, Tensor):
        digest_tensor(digest, item)
    elif isinstance(item, Mapping):
        for key in sorted(item, key=str):
            digest.update(f"{key}:".encode())
            _digest_inputs(digest, item[key])
    elif isinstance(item, (tuple, list)):
        digest.update(f"[{len(item)}]".encode())
        for part in item:
            _digest_inputs(digest, part)
    elif item is None or isinstance(item, (bool, int, float, str)):
        digest.update(repr(item).encode())
    else:
        digest.update(type(item).__qualname__.encode())  # a repr may hold an address, new in every process


@contextlib.contextmanager
def _progress_bar(
    name: str, count: EvaluationCount, done: int, *, show: bool, console: Console | None
) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        resumed = f"; {done} samples are done already" if done else ""
        bar.console.print(f"calibrating {name}: {count}{resumed}", markup=False, highlight=False)
        task = bar.add_task("evaluations", total=count.total, completed=done * count.per_sample)
        yield lambda rows: bar.advance(task, rows)

"""Whether two versions of the library give the same results: plans, the demo's table, decisions, samples, calibrations.

``record`` writes down what the version that is imported gives, ``compare`` says where two records differ. Only names
that every version has are used, so that one copy of this file serves them all; choose the version by ``PYTHONPATH``:

    python bench/same_results.py profiles .calibration/study
    PYTHONPATH=../before/src python bench/same_results.py record before.json --profiles .calibration/study
    PYTHONPATH=src           python bench/same_results.py record after.json --profiles .calibration/study
    python bench/same_results.py compare before.json after.json

Bytes are compared too, so both records have to be made on one machine, with the same versions of what is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import diffusers
import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

import cachepolicies
from cachepolicies import (
    CachedDenoiser,
    CachePoliciesError,
    CacheWarning,
    CalibrationSamples,
    Plan,
    Profile,
    Trace,
    calibrate,
    load_profile,
    plan,
    sample,
)
from cachepolicies.comparison import Workload
from cachepolicies.reference import demo, image_dit, workloads
from cachepolicies.reference.gaussian_mixture import GaussianMixtureDenoiser

FORMAT = "cachepolicies-same-results-1"
SHIPPED = ("video-dit", "image-dit")
"""The shipped profiles that hold the tables a plan needs; those of published models have none."""

SUBSTITUTES = ("hold", "linear", "linear:time=path", "quadratic")
BUDGETS = (10, 13, 17, 22, 25, 31)
OBJECTIVES = ("sum", "max", "lexicographic")
LARGE = 60
LARGE_REUSE = 12
"""Most reuses in a row of a quadratic from so many steps on: without a limit its table of errors would be too large."""

VARIATIONS: dict[str, dict[str, Any]] = {
    "errors predicted": {"budget": 17, "errors": "predicted"},
    "errors predicted, linear": {"budget": 17, "errors": "predicted", "substitute": "linear"},
    "errors predicted, linear along path": {"budget": 17, "errors": "predicted", "substitute": "linear:time=path"},
    "30 steps": {"budget": 17, "errors": "predicted", "num_steps": 30},
    "weights bound": {"budget": 17, "weights": "bound"},
    "weights uniform": {"budget": 17, "weights": "uniform"},
    "max_reuse 2": {"budget": 22, "max_reuse": 2},
    "always": {"budget": 17, "always": (3, 20, -1)},
    "monotone": {"budget": 22, "shape": "monotone"},
    "target": {"target": 0.05},
    "another scheduler's kind": {"budget": 17, "scheduler": "karras-euler"},
    "budget 0": {"budget": 0},
}
"""Plans of the shipped profiles with other arguments; the last two are refused."""

PARTS = ("plans", "demo", "rows", "calibrations")

PSNR_DB = 1e-6
PLAN_RELATIVE = 1e-9
RELATIVE = 1e-6
"""Of all other figures: what the samples and the judging of them are rounded to."""

_MULTISTEP: dict[str, dict[str, Any]] = {
    "video-dit": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "image-dit": {"prediction_type": "epsilon", **image_dit.SCHEDULE},
}


@frozen
class Row:
    """One way of sampling whose decisions and samples are recorded.

    Attributes:
        model: ``"video-dit"`` or ``"image-dit"``, with guidance.
        policy: spec of the policy.
        substitute: spec of the substitute.
        site: where the evaluation is cut.
        scheduler: name of a scheduler of diffusers; the workload's own if it is empty.
        in_place: sample with `cachepolicies.enable` on the network instead of `CachedDenoiser`.
        options: further arguments of either.
    """

    model: str
    policy: str
    substitute: str = "hold"
    site: str = "output"
    scheduler: str = ""
    in_place: bool = False
    options: Mapping[str, Any] = field(factory=dict)

    @property
    def name(self) -> str:
        """Unique among the rows."""
        parts = [self.model, self.site, self.policy, self.substitute, self.scheduler, "in place" * self.in_place]
        return " / ".join(part for part in (*parts, *(f"{k}={v}" for k, v in self.options.items())) if part)


_TEACACHE = "teacache:threshold=0.045,signal=modulated_input"
_MAGCACHE = "magcache:threshold=0.055,max_reuse=3"
_BLOCKS = ("sencache:epsilon=0.4,max_reuse=5", _TEACACHE, _MAGCACHE, "uniform:evaluations=22")

ROWS = (
    Row("video-dit", "sencache:epsilon=0.4,max_reuse=5"),
    Row("video-dit", "sencache:epsilon=optimal:nfe=17", "linear:time=path"),
    Row("video-dit", "uniform:evaluations=13", "quadratic"),
    *(Row("video-dit", policy, site="blocks") for policy in _BLOCKS),
    Row("video-dit", _MAGCACHE, site="blocks", in_place=True),
    Row("video-dit", "uniform:evaluations=17", scheduler="DPMSolverMultistepScheduler"),
    Row("image-dit", "never"),
    Row("image-dit", "sencache:epsilon=0.1,max_reuse=3"),
    Row("image-dit", "sencache:epsilon=0.1,max_reuse=8,epsilon_start=0.02", "linear"),
    Row("image-dit", "sencache:epsilon=optimal:nfe=17,score=correlated"),
    Row("image-dit", "sencache:epsilon=optimal:nfe=13", "quadratic"),
    Row("image-dit", "sencache:epsilon=0.1", options={"per_sample": False}),
    Row("image-dit", "sencache:epsilon=0.1", options={"audit": 0.3, "audit_seed": 1}),
    Row("image-dit", "uniform:every=3", "hermite"),
    Row("image-dit", "uniform:evaluations=17", "taylor:order=2"),
    Row("image-dit", "uniform:evaluations=17", "linear"),
    Row("image-dit", "schedule:refreshes=[0,1,2,5,9,14,20,27,35,44]"),
    Row("image-dit", _MAGCACHE),
    Row("image-dit", _TEACACHE),
    Row("image-dit", "sencache:epsilon=0.1,max_reuse=5", site="blocks"),
    *(Row("image-dit", policy, site="blocks") for policy in _BLOCKS[1:]),
    Row("image-dit", "uniform:every=2", site="blocks", options={"per_sample": False}),
    *(Row("image-dit", policy, site="blocks", in_place=True) for policy in _BLOCKS),
    Row("image-dit", "uniform:every=2", "linear", site="output", in_place=True),
    Row("image-dit", "sencache:epsilon=0.1", "linear", scheduler="UniPCMultistepScheduler"),
    Row("image-dit", "sencache:epsilon=0.1", scheduler="DDPMScheduler"),
)
"""With decisions of every sample's own where the options do not say otherwise; TeaCache at the output is refused."""

ROW_SAMPLES = {"video-dit": 3, "image-dit": 6}


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or compare; return 1 if two records differ."""
    parser = argparse.ArgumentParser(description="Prove that a change of the code changed no result.")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("profiles", help="calibrate the study's configurations, those that are not there yet")
    making.add_argument("folder", type=Path)
    making.add_argument("--only", nargs="+", default=[], help="only configurations whose name contains one of these")
    recording = commands.add_parser("record", help="write down what the version that is imported gives")
    recording.add_argument("out", type=Path)
    recording.add_argument("--profiles", type=Path, help="folder of the study's profiles, which are planned from too")
    recording.add_argument("--samples", type=int, default=8, help="of every row of the demo")
    recording.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="record these, keep what the file has of others",
    )
    comparing = commands.add_parser("compare", help="say where two records differ; exit code 1 if they do")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument(
        "--rounding", action="store_true", help="let bytes differ where the figures made of them agree"
    )
    comparing.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="compare only these")
    given = parser.parse_args(arguments)
    if given.command == "compare":
        return compare(given.before, given.after, given.parts, rounding=given.rounding)
    torch.set_num_threads(1)  # what is summed in which order depends on their number
    warnings.simplefilter("ignore", CacheWarning)
    print(f"cachepolicies from {_root()}", file=sys.stderr)
    if given.command == "profiles":
        make_profiles(given.folder, given.only)
    else:
        record(given.out, given.profiles, given.samples, given.parts)
    return 0


def _root() -> Path:
    return Path(cachepolicies.__file__).resolve().parents[2]


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:7.1f} s  {what}", file=sys.stderr, flush=True)


# --- profiles ---------------------------------------------------------------------------------------------------------


def make_profiles(folder: Path, only: Sequence[str] = ()) -> None:
    """Calibrate with the study of the version that is imported; the cheapest configurations first."""
    sys.path.insert(0, str(_root() / "bench" / "study"))
    from configurations import CONFIGURATIONS
    from measure import profile_of

    for configuration in sorted(CONFIGURATIONS, key=lambda each: (each.model != "image-dit", each.steps)):
        if not only or any(part in configuration.name for part in only):
            with _timed(configuration.name):
                profile_of(configuration, configuration.workload(), folder)


# --- recording --------------------------------------------------------------------------------------------------------


def record(out: Path, profiles: Path | None, samples: int, parts: Sequence[str] = PARTS) -> None:
    """Write a record."""
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "plans": lambda: plans(profiles),
        "demo": lambda: demonstration(samples),
        "rows": rows,
        "calibrations": calibrations,
    }
    document: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"format": FORMAT}
    for part in parts:
        with _timed(part):
            document[part] = makers[part]()
        document.setdefault("made by", {})[part] = {
            "version": cachepolicies.__version__,
            "folder": str(_root()),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "numpy": np.__version__,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    print(out)


def plans(folder: Path | None) -> dict[str, Any]:
    """Plan from the shipped profiles and from those in a folder: name of the profile to a mapping of plans."""
    files: dict[str, str | Path] = {name: name for name in SHIPPED}
    if folder is not None:
        files |= {path.stem: path for path in sorted(folder.rglob("*.json"))}
        if len(files) == len(SHIPPED):
            raise SystemExit(f"{folder}: no profiles; make them by `profiles {folder}`")
    made = {}
    for name, source in files.items():
        with _timed(f"plans of {name}"):
            profile = load_profile(source)
            made[name] = plans_of(profile, VARIATIONS if name in SHIPPED else {})
    return made


def plans_of(profile: Profile, variations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Plan with every substitute, objective and budget, and with some other arguments."""
    found: dict[str, Any] = {}
    for substitute in SUBSTITUTES:
        limited = substitute == "quadratic" and profile.num_steps > LARGE
        for objective in OBJECTIVES:
            for number, budget in enumerate(BUDGETS):
                arguments = {"budget": budget, "substitute": substitute, "objective": objective}
                if limited:
                    arguments["max_reuse"] = LARGE_REUSE
                found[f"{substitute} / {objective} / {budget}"] = _planned(profile, arguments, curve=number == 0)
    for name, changed in variations.items():
        found[name] = _planned(profile, changed, curve=True)
    return found


def _planned(profile: Profile, arguments: Mapping[str, Any], *, curve: bool) -> dict[str, Any]:
    return _refusable(lambda: described_plan(plan(profile, **arguments), curve=curve))


def described_plan(made: Plan, *, curve: bool) -> dict[str, Any]:
    """Return what is compared of a plan; the trade-off curve is the same for every budget, and long."""
    tolerance = made.tolerance
    return {
        "budget": made.budget,
        "refreshes": list(made.refreshes),
        "predicted": made.predicted,
        "total": made.total,
        "largest": made.largest,
        "weights": list(made.weights),
        "step_errors": list(made.step_errors),
        "tolerance": None
        if tolerance is None
        else {"t": list(tolerance.t), "epsilon": list(tolerance.epsilon), "margin": tolerance.margin},
        **({"curve": [[p.budget, list(p.refreshes), p.predicted] for p in made.curve]} if curve else {}),
    }


def demonstration(samples: int) -> dict[str, Any]:
    """Run the demo and return its rows without the times: label to figures."""
    with tempfile.TemporaryDirectory() as folder:
        if demo.main(["--samples", str(samples), "--out", folder]):
            raise SystemExit("the demo failed")
        table = json.loads((Path(folder) / "table.json").read_text())
    return {row["label"]: _demo_row(row) for row in table["rows"]}


def _demo_row(row: Mapping[str, Any]) -> dict[str, Any]:
    changes = row["changes"]
    known = [change["predicted"] for change in changes if change["predicted"] is not None]
    return {
        "steps": row["steps"],
        "nfe": row["nfe"],
        "nfe of each": row["per_sample"]["nfe"],
        "psnr mean": row["psnr_mean"],
        "psnr worst": row["psnr_worst"],
        "psnr of each": row["per_sample"]["psnr"],
        "ssim mean": row["ssim_mean"],
        "accuracy": row["accuracy"],
        "decisions": row["timeline"],
        "audited": len(changes),
        "true change": math.fsum(change["true"] for change in changes),
        "predicted change": math.fsum(known),
    }


def rows() -> dict[str, Any]:
    """Sample `ROWS`: name to decisions and samples."""
    made = {}
    for row in ROWS:
        with _timed(row.name):
            made[row.name] = _refusable(partial(sampled, row))
    return made


def sampled(row: Row) -> dict[str, Any]:
    """Sample one row."""
    workload = workloads.video_dit() if row.model == "video-dit" else workloads.image_dit()
    if row.scheduler:
        scheduler = getattr(diffusers, row.scheduler)(**_MULTISTEP[row.model])
        workload = attrs.evolve(workload, scheduler=scheduler)
    with torch.no_grad():
        return _in_place(row, workload) if row.in_place else _wrapped(row, workload)


def _wrapped(row: Row, workload: Workload) -> dict[str, Any]:
    denoiser = CachedDenoiser(
        workload.denoiser,
        row.policy,
        profile=row.model,
        scheduler=workload.scheduler,
        substitute=row.substitute,
        site=row.site,
        **row.options,
    )
    samples = _sampled(denoiser, row, workload)
    return {**described_trace(denoiser.trace), **described_array(samples)}


def _in_place(row: Row, workload: Workload) -> dict[str, Any]:
    guided: Any = workload.denoiser
    with cachepolicies.enable(
        guided.network, row.policy, profile=row.model, substitute=row.substitute, site=row.site, **row.options
    ) as enabled:
        with enabled.run(timesteps=workload.scheduler.timesteps(workload.num_steps)):
            samples = _sampled(guided, row, workload)
        return {**described_trace(enabled.trace), **described_array(samples)}


def _sampled(denoiser: Callable[..., Any], row: Row, workload: Workload) -> Tensor:
    seeds = range(ROW_SAMPLES[row.model])
    inputs = workload.draw(seeds)
    return sample(
        denoiser,
        workload.scheduler,
        inputs.noise,
        *inputs.args,
        num_steps=workload.num_steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **inputs.kwargs,
    )


def described_trace(trace: Trace) -> dict[str, Any]:
    """Return what is compared of a trace; a reason may be a plain word or a member of an enumeration of words."""
    width = max(len(call.evaluated) for call in trace.records)
    reasons = Counter(str.__str__(reason) for call in trace.records for reason in call.reason)
    return {
        "nfe": trace.nfe,
        "calls": trace.calls,
        "model_calls": trace.model_calls,
        "audit_calls": trace.audit_calls,
        "decisions": ["".join("#" if call.evaluated[d] else "." for call in trace.records) for d in range(width)],
        "reasons": dict(sorted(reasons.items())),
        "orders": {str(order): times for order, times in trace.orders().items()},
        "clipped": trace.clipped,
    }


def described_array(values: Tensor | np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return a fingerprint of the bytes, and figures that say how far two arrays with other bytes are apart."""
    array = np.ascontiguousarray(values.numpy() if isinstance(values, Tensor) else values)
    wide = array.astype(np.float64).ravel()
    # every element counts with a sign of its own, or differences would cancel
    signs = np.random.default_rng(0).choice([-1.0, 1.0], wide.size)
    return {
        "shape": list(array.shape),
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        "rms": float(np.sqrt(np.mean(wide**2))),
        "first": float(wide[0]),
        "projection": float(np.sqrt(np.mean(wide**2)) + signs @ wide / wide.size),
    }


def calibrations() -> dict[str, Any]:
    """Calibrate small runs, an exact denoiser and the image model's: name to tables and curves."""
    generator = torch.Generator().manual_seed(0)
    mixture = GaussianMixtureDenoiser(
        means=torch.randn(3, 2, 3, generator=generator), variances=torch.tensor([0.1, 0.3, 0.2]), weights=torch.ones(3)
    )
    clean = attrs.evolve(mixture, prediction="x0")
    noise = torch.randn(4, 2, 3, generator=generator)
    workload = workloads.image_dit()
    inputs = workload.draw(range(2))
    cases: dict[str, Callable[[], Profile]] = {
        "mixture, Euler": lambda: calibrate(
            lambda x, t: mixture(x, t / 1000.0),
            "flow-euler",
            CalibrationSamples(noise=noise),
            num_steps=20,
            weights=5,
            progress=False,
        ),
        "mixture, Heun": lambda: calibrate(
            lambda x, t: clean(x / (1.0 + t.view(-1, 1, 1)), t / (1.0 + t)),
            "karras-heun",
            CalibrationSamples(noise=noise),
            num_steps=10,
            progress=False,
        ),
        "image-dit": lambda: calibrate(
            workload.denoiser,
            workload.scheduler,
            CalibrationSamples(noise=inputs.noise, args=inputs.args),
            num_steps=10,
            weights=2,
            guidance=workload.guidance,
            progress=False,
        ),
    }
    made = {}
    for name, case in cases.items():
        with _timed(f"calibration of {name}"):
            made[name] = _refusable(partial(_calibrated, case))
    return made


def _calibrated(case: Callable[[], Profile]) -> dict[str, Any]:
    return described_profile(case())


def described_profile(profile: Profile) -> dict[str, Any]:
    """Return what is compared of a profile."""
    return {
        "timesteps": list(profile.timesteps),
        "evaluations": profile.evaluations,
        "curves": {
            name: {"t": list(curve.t), **described_array(curve.values)}
            for name, curve in sorted(profile.curves.items())
        },
        "tables": {name: described_array(table) for name, table in sorted(profile.tables.items())},
        "polynomials": {name: list(fit.coefficients) for name, fit in sorted(profile.polynomials.items())},
    }


def _refusable(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is made, or which error of the library refused it; its words may change."""
    try:
        return make()
    except CachePoliciesError as error:
        return {"refused": type(error).__name__}


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(before: Path, after: Path, parts: Sequence[str] = PARTS, *, rounding: bool = False) -> int:
    """Print where two records differ and how much was compared; return 1 if they do."""
    first, second = (json.loads(path.read_text()) for path in (before, after))
    for path, document in ((before, first), (after, second)):
        if document.get("format") != FORMAT:
            raise SystemExit(f"{path}: no record of this script")
    failed = False
    for part in parts:
        counts: Counter[str] = Counter()
        missing = [str(path) for path, document in ((before, first), (after, second)) if part not in document]
        if missing:
            print(f"{part}: not in {' and not in '.join(missing)}")
            failed = True
            continue
        found = list(differences(first[part], second[part], (part,), counts, rounding))
        for difference in found:
            print(difference)
        compared = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())) or "nothing"
        print(f"{part}: {len(found)} differences in {len(first[part])} entries ({compared})")
        failed |= bool(found) or not counts
    return int(failed)


def differences(
    before: Any, after: Any, path: tuple[str, ...], counts: Counter[str], rounding: bool = False
) -> Iterator[str]:
    """Yield a line for every difference; count what is compared by its kind."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            if key not in before or key not in after:
                yield f"{_shown(path)}: {key!r} is only in the record {'after' if key in after else 'before'}"
            elif not (rounding and key == "sha256"):
                yield from differences(before[key], after[key], (*path, key), counts, rounding)
    elif isinstance(before, list) and isinstance(after, list) and _nested(before, after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, (*path, str(number)), counts, rounding)
    else:
        kind, equal = _judged(before, after, path)
        counts[kind] += 1
        if not equal:
            yield f"{_shown(path)}: {_compact(before)} -> {_compact(after)}"


def _nested(before: list[Any], after: list[Any]) -> bool:
    """Whether to go into two lists: not if they are of whole numbers, which are shown together."""
    return len(before) == len(after) and any(not isinstance(value, int) for value in (*before, *after))


def _judged(before: Any, after: Any, path: tuple[str, ...]) -> tuple[str, bool]:
    """Return what kind of leaf this is, and whether the two are as equal as they have to be."""
    if any(name.startswith("nfe") for name in path):
        return "NFE", before == after
    if "refreshes" in path or ("curve" in path and isinstance(before, list)):
        return "lists of refreshes", before == after
    if "decisions" in path:
        return "timelines", before == after
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (before, after))
    if not numbers or (isinstance(before, int) and isinstance(after, int)):
        return "words and whole numbers", before == after
    if before == after or (before != before and after != after):
        return "figures", True
    if any(name.startswith("psnr") for name in path):
        return "figures", abs(before - after) <= PSNR_DB
    tolerance = PLAN_RELATIVE if path[0] == "plans" else RELATIVE
    return "figures", abs(before - after) <= tolerance * max(abs(before), abs(after))


def _shown(path: tuple[str, ...]) -> str:
    return " > ".join(path)


def _compact(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


if __name__ == "__main__":
    raise SystemExit(main())

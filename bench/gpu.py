"""What caching adds to a step and what it gains, on a GPU, with random weights in the shapes of real models.

``make bench-gpu`` takes a FLUX-shaped and a Wan-1.3B-shaped transformer in bfloat16, and writes
``bench/results/gpu.csv`` and the table of ``docs/gpu.md``, with the card's name. ``--tiny`` does the same with tiny
models on a CPU, which tests the script and says nothing. Sections that no longer fit into ``--seconds`` are left out
and said to be.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from attrs import define, evolve, field

import cachepolicies
from added import LIMITS, profile_of, settings_of
from cachepolicies import CachedDenoiser
from cachepolicies.policies import Schedule
from speedup import Subject, Variant, bare, in_place, measure, variants, wrapped

ROOT = Path(__file__).resolve().parent
OUT, PAGE = ROOT / "results" / "gpu.csv", ROOT.parent / "docs" / "gpu.md"
FIELDS = ("card", "model", "section", "variant", "figure", "value", "unit")
BEGIN, END = "<!-- begin generated: make bench-gpu -->", "<!-- end generated -->"

WAN = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "num_layers": 30,
}
TINY_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 24,
    "num_layers": 3,
}
TINY_FLUX = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 6, 6),
}


@define
class Report:
    """The rows, and the time that is left.

    Attributes:
        card: name of the device.
        ends: when no section begins any more.
        rows: for the CSV.
        left_out: sections that did not fit.
    """

    card: str
    ends: float
    out: Path
    rows: list[dict[str, str]] = field(factory=list)
    left_out: list[str] = field(factory=list)

    def add(self, model: str, section: str, variant: str, figure: str, value: float, unit: str) -> None:
        """Add a figure, and write what there is."""
        row = dict(zip(FIELDS, (self.card, model, section, variant, figure, f"{value:.4g}", unit), strict=True))
        self.rows.append(row)
        print(*row.values(), sep="  ", flush=True)
        with self.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def section(self, name: str, run: Callable[[], None]) -> None:
        """Run a section, if there is time."""
        if time.monotonic() > self.ends:
            self.left_out.append(name)
            print(f"left out, no time: {name}", flush=True)
            return
        began = time.monotonic()
        run()
        print(f"-- {name}: {time.monotonic() - began:.0f} s", flush=True)


def wan(device: str, *, tiny: bool, steps: int) -> Subject:
    """Return a Wan-1.3B-shaped transformer, 33 frames of 480 x 832."""
    frames, height, width, text, width_of_text = (2, 8, 8, 6, 16) if tiny else (9, 60, 104, 512, 4096)
    model = _random(diffusers.WanTransformer3DModel, TINY_WAN if tiny else WAN, device)
    shape = (1, model.config.in_channels, frames, height, width)
    timesteps = tuple(np.linspace(1000.0, 20.0, steps).tolist())
    rest = {"encoder_hidden_states": _noise(device, 1, text, width_of_text), "return_dict": False}
    return _subject(model, shape, timesteps, device, rest)


def flux(device: str, *, tiny: bool, steps: int) -> Subject:
    """Return a FLUX.1-shaped transformer, 1024 x 1024."""
    side, text = (4, 5) if tiny else (64, 512)
    model = _random(diffusers.FluxTransformer2DModel, TINY_FLUX if tiny else {"guidance_embeds": True}, device)
    ids = torch.zeros(side, side, 3, device=device)
    ids[..., 1] += torch.arange(side, device=device)[:, None]
    ids[..., 2] += torch.arange(side, device=device)[None]
    config = model.config
    rest: dict[str, Any] = {
        "encoder_hidden_states": _noise(device, 1, text, config.joint_attention_dim),
        "pooled_projections": _noise(device, 1, config.pooled_projection_dim),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3, device=device),
        "return_dict": False,
    }
    if config.guidance_embeds:
        rest["guidance"] = torch.full((1,), 3.5, device=device)
    timesteps = tuple(np.linspace(1.0, 0.02, steps).tolist())
    return _subject(model, (1, side * side, config.in_channels), timesteps, device, rest)


def _random(kind: Any, config: dict[str, Any], device: str) -> Any:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            return kind(**config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _noise(device: str, *shape: int) -> torch.Tensor:
    made = torch.randn(*shape, device=device)
    return made.bfloat16() if device == "cuda" else made


def _subject(
    model: Any, shape: tuple[int, ...], timesteps: tuple[float, ...], device: str, rest: dict[str, Any]
) -> Subject:
    one, other = _noise(device, *shape), _noise(device, *shape)
    levels = [torch.full((1,), t, device=device) for t in timesteps]

    def inputs(k: int) -> dict[str, Any]:
        share = k / len(timesteps)
        return {"hidden_states": one * (1.0 - share) + other * share, "timestep": levels[k], **rest}

    made = [inputs(k) for k in range(len(timesteps))]
    if device == "cuda":
        return Subject(model, lambda k: made[k], timesteps, torch.cuda.synchronize, at_once=False)
    return Subject(model, lambda k: made[k], timesteps)


def _asked(policy: str, subject: Subject, *, place: str) -> Variant:
    given = settings_of(policy, subject.timesteps)
    if "profile" in given:
        shape = tuple(subject.inputs(0)["hidden_states"].shape[1:])
        given["profile"] = profile_of(subject.timesteps, type(subject.model).__name__, shape)

    @contextmanager
    def set_up(subject: Subject) -> Any:
        if place == "wrapper":
            denoiser = CachedDenoiser(subject.model, site="output", learn=False, **given)
            with denoiser.run(timesteps=subject.timesteps):
                yield lambda k: denoiser(**subject.inputs(k))
            return
        with (
            cachepolicies.enable(subject.model, site="blocks", learn=False, **given) as enabled,
            enabled.run(subject.timesteps),
        ):
            yield lambda k: subject.model(**subject.inputs(k))

    return set_up


@torch.no_grad()
def added(report: Report, name: str, subject: Subject, rounds: int) -> None:
    """Measure what a step costs more at which everything is computed, and how often the host waits for the device."""
    chosen: dict[tuple[str, str], Variant] = {("", "bare"): bare}
    chosen |= {
        (place, policy): _asked(policy, subject, place=place)
        for place in ("in place", "wrapper")
        for policy in LIMITS[place]
    }
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in chosen}
    waits: dict[tuple[str, str], float] = {}
    count = len(subject.timesteps)
    for number in range(rounds + 1):
        for key, variant in chosen.items():
            with variant(subject) as call:
                call(0)
                subject.wait()
                began, host = time.perf_counter(), time.thread_time()
                for k in subject.steps[1:]:
                    call(k)
                host = time.thread_time() - host
                subject.wait()
                whole = time.perf_counter() - began
            if number:
                taken[key].append((whole / (count - 1), host / (count - 1)))
            elif torch.cuda.is_available():
                waits[key] = _waits(subject, variant)
    base = taken["", "bare"]
    report.add(name, "added", "bare", "time a step", 1e3 * statistics.median(t for t, _ in base), "ms")
    for (place, policy), found in taken.items():
        if policy == "bare":
            continue
        for at, figure in enumerate(("time a step", "host time a step")):
            more = statistics.median(a[at] - b[at] for a, b in zip(found, base, strict=True))
            report.add(name, "added", f"{policy}, {place}", figure, 1e6 * more, "us")
        if waits:
            extra = waits[place, policy] - waits["", "bare"]
            report.add(name, "added", f"{policy}, {place}", "waits of the host a step", extra, "")


def _waits(subject: Subject, variant: Variant) -> float:
    with variant(subject) as call:
        call(0)
        call(1)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                for k in subject.steps[2:]:
                    call(k)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in told) / (len(subject.timesteps) - 2)


def gained(report: Report, name: str, subject: Subject, rounds: int) -> None:
    """Measure speed-up beside what the executed FLOPs promise, ours and peers'."""
    chosen = variants(len(subject.timesteps))
    chosen.pop("cache-dit, static mask", None)
    for row in measure(subject, chosen, rounds):
        report.add(name, "speed-up", row["variant"], "share of the FLOPs", float(row["share"]), "")
        report.add(name, "speed-up", row["variant"], "speed-up", float(row["speed_up"]), "times")
        report.add(
            name, "speed-up", row["variant"], "speed-up of what the FLOPs promise", float(row["of_promised"]), ""
        )


@torch.no_grad()
def memory(report: Report, name: str, subject: Subject) -> None:
    """Measure the peak memory of a run above the weights."""
    plan = _plan(subject)
    for variant, set_up in {"bare": bare, "ours at output": wrapped(plan), "ours at blocks": in_place(plan)}.items():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with set_up(subject) as call:
            for k in subject.steps[:6]:
                call(k)
            subject.wait()
        report.add(
            name,
            "memory",
            variant,
            "peak above the weights",
            (torch.cuda.max_memory_allocated() - before) / 2**20,
            "MiB",
        )


def _plan(subject: Subject) -> Schedule:
    """Return every second step as a plan."""
    return Schedule(refreshes=tuple(range(0, len(subject.timesteps), 2)))


@torch.no_grad()
def compiled(report: Report, name: str, subject: Subject, how: str, rounds: int) -> None:
    """Measure a compiled model, bare and cached: regional, whole, or whole with CUDA graphs."""
    model, plan = subject.model, _plan(subject)
    began = time.monotonic()
    blocks = [module for module in model.modules() if type(module).__name__ in model._repeated_blocks]
    if how == "regional":
        model.compile_repeated_blocks(fullgraph=True)
        called, site = model, "blocks"
    else:
        called = torch.compile(model, mode="reduce-overhead" if how == "CUDA graphs" else "default")
        site = "output"
    graphs = how == "CUDA graphs" and torch.cuda.is_available()

    def step(call: Callable[[int], Any], k: int) -> Any:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return call(k)

    compiled_subject = evolve(subject, model=called)
    ways = {"bare": bare, f"ours at {site}": in_place(plan) if site == "blocks" else wrapped(plan)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    outputs: dict[str, list[torch.Tensor]] = {}
    for number in range(rounds + 1):
        for way, set_up in ways.items():
            with set_up(compiled_subject) as call:
                seen = [step(call, k)[0].clone() for k in subject.steps] if not number else []
                if seen:
                    outputs[way] = seen
                    continue
                subject.wait()
                start = time.perf_counter()
                for k in subject.steps:
                    step(call, k)
                subject.wait()
                taken[way].append(time.perf_counter() - start)
    cached = outputs[f"ours at {site}"]
    expected = [outputs["bare"][k - k % 2] if site == "output" else outputs["bare"][k] for k in subject.steps]
    far = max(
        float((a - b).abs().max() / b.abs().max())
        for k, (a, b) in enumerate(zip(cached, expected, strict=True))
        if site == "output" or k % 2 == 0
    )
    gains = [a / b for a, b in zip(taken["bare"], taken[f"ours at {site}"], strict=True)]
    section, ours, count = f"compiled, {how}", f"ours at {site}", len(subject.timesteps)
    report.add(name, section, ours, "speed-up at half of the evaluations", statistics.median(gains), "times")
    report.add(name, section, ours, "largest difference from what it should be", far, "of the largest")
    report.add(name, section, "bare", "time a step", 1e3 * statistics.median(taken["bare"]) / count, "ms")
    report.add(name, section, "both", "compiling and measuring", time.monotonic() - began, "s")
    for block in blocks:
        block._compiled_call_impl = None
    torch.compiler.reset()


def page(report: Report) -> None:
    """Write the figures into the page."""
    head = "| model | section | variant | figure | value |\n| --- | --- | --- | --- | --- |"
    lines = [
        f"| {r['model']} | {r['section']} | {r['variant']} | {r['figure']} | {r['value']} {r['unit']} |"
        for r in report.rows
    ]
    said = f"Measured on one {report.card}, torch {torch.__version__}, diffusers {diffusers.__version__}."
    if report.left_out:
        said += f" Not measured: {', '.join(report.left_out)}."
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text("\n\n".join((before + BEGIN, said, "\n".join((head, *lines)), END)) + rest.partition(END)[2])


def _measure(report: Report, name: str, build: Any, device: str, *, tiny: bool, rounds: int) -> None:
    on_card = device == "cuda"
    began = time.monotonic()
    if began > report.ends:
        report.left_out.append(name)
        return
    subject = build(device, tiny=tiny, steps=12 if tiny else 50)
    print(f"-- {name}: weights: {time.monotonic() - began:.0f} s", flush=True)
    short = evolve(subject, timesteps=subject.timesteps[:12])
    report.section(f"{name}: added", lambda: added(report, name, short, rounds))
    report.section(f"{name}: speed-up", lambda: gained(report, name, subject, rounds))
    if on_card:
        report.section(f"{name}: memory", lambda: memory(report, name, short))
    ways = ["regional"]
    if on_card and name.startswith("Wan"):  # on a CPU they are minutes of C++ for nothing
        ways += ["whole", "CUDA graphs"]
    for how in ways:
        report.section(f"{name}: compiled, {how}", partial(compiled, report, name, short, how, rounds))


def main() -> int:
    """Measure, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU too")
    parser.add_argument("--seconds", type=float, default=420.0, help="no section begins later")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    on_card = torch.cuda.is_available()
    if not on_card and not given.tiny:
        print("there is no GPU here; --tiny tests the script on a CPU", file=sys.stderr)
        return 2
    device = "cuda" if on_card else "cpu"
    card = torch.cuda.get_device_name() if on_card else "CPU, which says nothing"
    report = Report(card, time.monotonic() + given.seconds, given.out)
    torch.set_float32_matmul_precision("high")
    for name, build in {"Wan-1.3B-shaped": wan, "FLUX-shaped": flux}.items():
        _measure(report, name, build, device, tiny=given.tiny, rounds=given.rounds)
        if on_card:
            torch.cuda.empty_cache()
    if on_card and not given.tiny:
        page(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the engine adds to a call: time, host synchronisations and memory, with a denoiser that does nothing.

Run with ``make bench``. Times are medians over every call of several runs; the bare call of the same function is
measured in the same process and subtracted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cachepolicies import CachedDenoiser, Profile
from cachepolicies.engine import memory, record, stand_in
from cachepolicies.profiles.schema import Curve, ModelInfo, SchedulerInfo

SHAPE = (4, 8, 12, 12)
TIMESTEPS = tuple(np.linspace(1000.0, 20.0, 50).tolist())
LIMITS = {"never": 60.0, "sencache": 150.0}
"""Microseconds a call that the engine may add at the median, one sample."""

WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero"}


@frozen
class Cost:
    """What one policy costs.

    Attributes:
        policy: its spec.
        batch: rows of the latent.
        median_us: microseconds a call that the engine adds at the median.
        p90_us: the same at the 90th percentile.
        waits: dispatched operators that would wait for a device, a decision.
        reads: tensors read by the host, a decision, were they on an accelerator.
        held_bytes: tensors that the engine holds at the end of a run.
        cache_ratio: reused calls / all calls.
    """

    policy: str
    batch: int
    median_us: float
    p90_us: float
    waits: float
    reads: float
    held_bytes: int
    cache_ratio: float


def constant_profile() -> Profile:
    """Sensitivities under which SenCache reuses three of four calls."""

    def curve(value: float) -> Curve:
        return Curve(TIMESTEPS, np.full((len(TIMESTEPS), 1), value))

    return Profile(
        name="constant",
        model=ModelInfo("nothing"),
        prediction_type="velocity",
        latent_shape=SHAPE,
        scheduler=SchedulerInfo("flow-euler", "flow"),
        timesteps=TIMESTEPS,
        curves={"alpha_x": curve(0.1), "alpha_t": curve(1e-4)},
    )


def counted_waits(call: Callable[[], object]) -> int:
    """Return how many operators that would wait for a device are dispatched during ``call``."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    return sum(event.count for event in profiler.key_averages() if event.key in WAITING)


def counted_reads(call: Callable[[], object]) -> int:
    """Return how often Python reads a tensor during ``call``, as if the tensors were on an accelerator.

    On the CPU a read dispatches nothing and waits for nothing; on an accelerator each is one synchronisation.
    """
    reads = 0
    original = torch.Tensor.tolist

    def tolist(self: Tensor) -> Any:
        nonlocal reads
        reads += 1
        return original(self)

    with ExitStack() as stack:
        for module in (memory, record, stand_in):
            stack.enter_context(mock.patch.object(module, "visible", return_value=False))
        stack.enter_context(mock.patch.object(Tensor, "tolist", tolist))
        call()
    return reads


def latents(batch: int) -> list[Tensor]:
    """A slowly moving latent, one for each timestep."""
    x = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
    return [x * (1.0 + 0.001 * k) for k in range(len(TIMESTEPS))]


def times(call: Callable[[Tensor, float], object], batch: int, runs: int, around: Callable[[], Any]) -> list[float]:
    """Return the seconds of every call of ``runs`` runs."""
    inputs, seconds = latents(batch), []
    for _ in range(runs):
        with around():
            for x, t in zip(inputs, TIMESTEPS, strict=True):
                start = time.perf_counter()
                call(x, t)
                seconds.append(time.perf_counter() - start)
    return seconds


@contextmanager
def nothing_around() -> Iterator[None]:
    """A run of the bare function needs no context."""
    yield


def held(denoiser: CachedDenoiser) -> int:
    """Return the bytes of the tensors in the engine's stores and states after a run's last call."""
    request = denoiser._requests.latest
    if request is None or request.run is None:
        return 0
    run = request.run
    tensors = [refresh.output for store in run.memory._stores.values() for refresh in store.history]
    states = [getattr(group.state, "inner", group.state) for group in run.groups.values()]  # inner: within limits
    tensors += [state.x for state in states if isinstance(getattr(state, "x", None), Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def measure(policy: str, batch: int, runs: int) -> Cost:
    """Measure one policy."""
    output = torch.zeros(batch, *SHAPE)

    def nothing(x: Tensor, t: float) -> Tensor:
        return output

    profile = constant_profile() if policy.startswith("sencache") else None
    denoiser = CachedDenoiser(nothing, policy, profile=profile)

    def declared() -> Any:
        return denoiser.run(timesteps=TIMESTEPS)

    times(denoiser, batch, 3, declared)  # warm up
    bare = statistics.median(times(nothing, batch, runs, nothing_around))
    engine = [second - bare for second in times(denoiser, batch, runs, declared)]
    sizes = []

    def whole_run() -> None:
        with declared():
            for x, t in zip(latents(batch), TIMESTEPS, strict=True):
                denoiser(x, t)
            sizes.append(held(denoiser))

    waits, reads = counted_waits(whole_run), counted_reads(whole_run)
    return Cost(
        policy=policy,
        batch=batch,
        median_us=1e6 * statistics.median(engine),
        p90_us=1e6 * statistics.quantiles(engine, n=10)[-1],
        waits=waits / len(TIMESTEPS),
        reads=reads / len(TIMESTEPS),
        held_bytes=sizes[0],
        cache_ratio=denoiser.cache_ratio,
    )


def main() -> int:
    """Measure, print, and return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=40, help="runs of 50 calls a policy")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    policies = ("never", "uniform:every=2", "sencache:epsilon=0.03,epsilon_start=0.03")
    costs = [measure(policy, batch, arguments.runs) for batch in (1, 8) for policy in policies]
    table = Table(
        title=f"Cost a call (waits, reads: a decision), latents B x {'x'.join(map(str, SHAPE))}, empty denoiser"
    )
    for heading in (
        "policy",
        "batch",
        "median us",
        "p90 us",
        "limit us",
        "waits",
        "reads",
        "held bytes",
        "cache ratio",
    ):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    exceeded = False
    for cost in costs:
        limit = LIMITS.get(cost.policy.split(":")[0]) if cost.batch == 1 else None
        exceeded |= limit is not None and cost.median_us > limit
        table.add_row(
            cost.policy,
            str(cost.batch),
            f"{cost.median_us:.0f}",
            f"{cost.p90_us:.0f}",
            "" if limit is None else f"{limit:.0f}",
            f"{cost.waits:.2f}",
            f"{cost.reads:.2f}",
            str(cost.held_bytes),
            f"{cost.cache_ratio:.0%}",
        )
    Console(width=130).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    if exceeded:
        print("a limit is exceeded", file=sys.stderr)
    return int(exceeded)


if __name__ == "__main__":
    raise SystemExit(main())

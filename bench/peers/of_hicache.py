"""hicache-pp: the guided output forecast from evenly spaced evaluations, in a Hermite or an exponential basis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from cases import Case, sampled
from entry import Entry, Run
from hicache_pp.dmd import auto_forecast_state, dmd_forecast_state, dmd_update_snapshots
from hicache_pp.hermite import hicache_decide, hicache_forecast, hicache_init, hicache_update_derivatives
from torch import Tensor


def entries() -> list[Entry]:
    """Return its bases, swept over interval and order."""
    found = []
    for interval in (2, 3, 4, 5, 6):
        for order in (1, 2):
            found.append(
                _forecasting("hicache-pp Hermite", f"interval={interval},order={order}", interval, order, "hermite")
            )
        found.append(_forecasting("hicache-pp DMD", f"interval={interval}", interval, 1, "dmd"))
        found.append(_forecasting("hicache-pp auto", f"interval={interval}", interval, 1, "auto"))
    return found


def _forecasting(method: str, setting: str, interval: int, order: int, backend: str) -> Entry:
    def run(case: Case, seeds: Sequence[int]) -> Run:
        pictures, evaluations = [], 0
        for seed in seeds:  # one by one: its bases look at all elements of a tensor together
            state = hicache_init(case.workload.num_steps, interval, order, first_enhance=3, backend=backend)
            pictures.append(sampled(case.workload, [seed], _with(case.workload.denoiser, state)))
            evaluations += len(state["activated_steps"])
        return Run(torch.cat(pictures), evaluations / (len(seeds) * case.workload.num_steps))

    return Entry(method, setting, run)


def _with(denoiser: Callable[..., Any], state: dict[str, Any]) -> Callable[..., Tensor]:
    forecasts = {"hermite": hicache_forecast, "dmd": dmd_forecast_state, "auto": auto_forecast_state}

    def denoise(x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hicache_decide(state) == "full":
            output: Tensor = denoiser(x, t, *args, **kwargs)
            hicache_update_derivatives(state, output)
            dmd_update_snapshots(state, output, state["history"])
        else:
            output = forecasts[state["backend"]](state)
        state["step"] += 1
        return output

    return denoise


def versions() -> str:
    """Return the version, for provenance."""
    return f"hicache-pp {version('hicache-pp')}"

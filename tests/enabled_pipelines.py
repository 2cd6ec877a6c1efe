"""What the tests of caching in place share: profiles and settings for the tiny pipelines, counts of their blocks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

import cachepolicies
from cachepolicies import CachePolicy, CacheWarning, Decision, Profile, Reason, Trace, as_scheduler
from cachepolicies.adapters import adapter_of
from cachepolicies.profiles.schema import Curve, ModelInfo, SchedulerInfo
from tiny_pipelines import PIPELINES

STEPS = 6
"""Of a call of a tiny pipeline, where nothing else is said."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def pipeline(key: str):
    """One pipeline for all tests that leave it as they found it."""
    return PIPELINES[key].build()


@functools.cache
def plain(key: str, size: str = "small", batch: int = 1, guidance: bool = True) -> Tensor:
    """What the pipeline returns with nothing enabled."""
    return PIPELINES[key].call(pipeline(key), steps=STEPS, size=size, batch=batch, guidance=guidance)


def constant_profile(pipe, module: nn.Module, alpha_x: float = 0.5, alpha_t: float = 1e-3) -> Profile:
    """A profile with constant sensitivities for a pipeline's denoiser and scheduler, in the units of its levels."""
    levels = 1000.0 * np.linspace(1.0, 0.0, 101)
    timesteps = tuple(levels if adapter_of(module).clock == "timestep" else levels / 1000.0)
    scheduler = as_scheduler(pipe.scheduler)
    curves = {
        name: Curve(timesteps, np.full((len(timesteps), 2), value))
        for name, value in (("alpha_x", alpha_x), ("alpha_t", alpha_t))
    }
    return Profile(
        name="constant",
        model=ModelInfo(class_name=type(module).__name__),
        prediction_type=scheduler.prediction_type,
        latent_shape=(4,),
        scheduler=SchedulerInfo(name=scheduler.name, family=scheduler.family),
        timesteps=timesteps,
        samples=2,
        curves=curves,
    )


@functools.cache
def settings(key: str, policy: str, guidance: bool = True) -> dict:
    """Arguments of `enable` with which the policy evaluates and reuses in a run of a tiny pipeline."""
    pipe = pipeline(key)
    module = PIPELINES[key].modules(pipe)[0]
    if policy == "never":
        return {}
    if policy == "uniform":
        return {"every": 2}
    if policy == "magcache":
        return {"ratios": (1.0,) + (0.9,) * (STEPS - 1), "threshold": 0.3, "max_reuse": 2}
    if policy == "teacache":
        signals = adapter_of(module).signals
        signal = "modulated_input" if "modulated_input" in signals else "timestep_embedding"
        given: dict[str, Any] = {"coefficients": (1.0, 0.0), "signal": signal}
        return given | {"threshold": 1.2 * max(scores(key, policy, guidance, threshold=1e-12, **given))}
    given = {"profile": constant_profile(pipe, module)}
    return given | {"epsilon": 1.2 * max(scores(key, policy, guidance, epsilon=1e-12, **given))}


def scores(key: str, policy: str, guidance: bool = True, **given) -> list[float]:
    """The scores of a run in which each step is compared with the one before: the tolerance lets nothing be reused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        with cachepolicies.enable(pipeline(key), policy, **given) as enabled:
            PIPELINES[key].call(pipeline(key), steps=STEPS, guidance=guidance)
            trace = enabled.trace
    assert trace.model_calls == trace.calls
    return [score for record in trace.records for score in record.score or ()]


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of the stack, in the order in which they run."""
    found: list[nn.Module] = []
    for blocks in adapter_of(module).stack:
        member = module.get_submodule(blocks.path)
        found += list(member) if isinstance(member, nn.ModuleList) else [member]
    return found


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[list[int]]]:
    """Count the forwards of every block of every module, with torch's own hooks: the trace has no part in it."""
    counts = [[0] * len(blocks_of(module)) for module in modules]

    def counter(of: list[int], place: int):
        def count(module, args) -> None:
            of[place] += 1

        return count

    handles = [
        block.register_forward_pre_hook(counter(of, place))
        for of, module in zip(counts, modules, strict=True)
        for place, block in enumerate(blocks_of(module))
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def steps_of(trace: Trace) -> list[int]:
    """The steps that a trace has, in order, each once."""
    steps = set()
    for record in trace.records:
        assert record.index is not None
        steps.add(record.index)
    return sorted(steps)


def decisions(trace: Trace) -> list[tuple]:
    """What was decided at each call."""
    return [(record.branch, record.index, record.evaluated, record.reason) for record in trace.records]


class Why(Reason):
    STEP = "step"


@frozen(eq=False)
class ReuseSteps(CachePolicy):
    """Reuse at the steps named, of the run that the engine knows of."""

    name: ClassVar[str] = "reuse-steps"

    steps: frozenset[int] = frozenset()

    def decide(self, step, state):
        return Decision.same(step.index in self.steps, Why.STEP, step.run.decisions)


def evaluated_of(trace, branch: str) -> list[tuple[int, bool]]:
    """The steps of a branch, in order, and whether its first sample was evaluated there."""
    return [(r.index, r.evaluated[0]) for r in trace.records if r.branch == branch]

"""What the engine is told of a call: where the denoiser is called, what was said of the run, which place is reached."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import define, field, frozen
from torch import Tensor

from cachepolicies.base.host import DeclaredTimesteps, rounding_of
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.contracts.step import direction_of

WHOLE = ""
"""Name of the place of a site that has one place."""


DEFAULT_BRANCH = "default"
"""Name of the branch of calls that nobody names."""


@frozen(eq=False)
class Declaration:
    """What the caller said of a run before it began.

    Attributes:
        given: the timesteps as given, or ``None`` where only their number was announced.
        announced_steps: number of steps, where the caller counts them itself and gives the index with every call.
        levels: the same as this library counts noise levels, where the model is called otherwise.
        timesteps: the noise levels in order of visit, without repeats; ``None`` where they were not given.
    """

    given: DeclaredTimesteps | None
    announced_steps: int | None = None
    levels: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = field(init=False)
    _rising: tuple[float, ...] = field(init=False, repr=False)
    _exactly: frozenset[float] = field(init=False, repr=False)

    @timesteps.default
    def _levels(self) -> tuple[float, ...] | None:
        # By noise level, not by position: a sampler that jumps back (RePaint) visits a level several times.
        if self.given is None:
            return None
        values = self.given.values if self.levels is None else self.levels
        rising = direction_of(values) > 0
        return tuple(sorted(set(values), reverse=not rising))

    @_rising.default
    def _in_order(self) -> tuple[float, ...]:
        return tuple(sorted(self.timesteps or ()))

    @_exactly.default
    def _as_given(self) -> frozenset[float]:
        return frozenset(self._rising)

    @property
    def num_steps(self) -> int | None:
        """Number of steps, as far as it was said."""
        return self.announced_steps if self.timesteps is None else len(self.timesteps)

    def snap(self, t: float, given: object) -> float:
        """Return the declared timestep that ``t`` is, up to relative rounding of its dtype; else t itself.

        Args:
            t: noise level.
            given: the same, as the denoiser is called with it.
        """
        if self.timesteps is None or t in self._exactly:
            return t
        rounding = rounding_of(given)
        rising = self._rising
        at = bisect_left(rising, t)
        near = rising[max(at - 1, 0) : at + 1]  # the levels on both sides of t
        nearest = min(near, key=lambda level: abs(level - t))
        return nearest if abs(nearest - t) <= rounding * max(abs(nearest), abs(t)) else t


@frozen(eq=False)
class Call:
    """One call of the denoiser, as the engine sees it.

    Attributes:
        x: ``(B, ...)`` the latent.
        t: noise level on the host.
        branch: name of the branch.
        labelled: whether the caller named the branch.
        conditioning: every argument but x and t by name, to tell apart calls at the same point.
        index: step of the run, where the caller knows it; otherwise it is found from t.
        copies: tells how often each sample stands in the batch, where the settings leave that to be found out; asked
            when a run begins.
        origin: which generator calls, where no run was declared; 0 for none.
        full: why this call is evaluated in full and not remembered, whatever the policy says; ``None`` where it is not.
        as_one: whether the samples of its batch cannot be told apart, so that they decide as one.
    """

    x: Tensor
    t: float
    branch: str
    labelled: bool
    conditioning: Mapping[str, Any]
    index: int | None = None
    copies: Callable[[], int] | None = None
    origin: int = 0
    full: EngineReason | None = None
    as_one: bool = False


@define(eq=False)
class Arrival:
    """A place of the site that the model's forward has reached.

    Attributes:
        place: its name, `WHOLE` where the site has one.
        input: ``(B, ...)`` what goes into it, or ``None``.
        signals: ``(B, ...)`` values by name, as far as they are wanted.
        read_only: whether the site makes what it hands over itself, keeps nothing of it, and only reads what it is
            handed out; neither is copied then.
    """

    place: str = WHOLE
    input: Tensor | None = None
    signals: Mapping[str, Tensor] = field(factory=dict)
    read_only: bool = False


@frozen
class EvaluationRequest:
    """An evaluation that the engine asks for.

    Attributes:
        rows: the rows to evaluate, ``None`` for the whole batch.
        audit: whether it is only to audit, or to verify: nothing of it may be kept or handed out.
    """

    rows: tuple[int, ...] | None
    audit: bool = False


EVERY_ROW = EvaluationRequest(None)
"""The whole batch is to be evaluated."""

Exchange: TypeAlias = Generator[EvaluationRequest, Tensor, Tensor]
"""One place of a call being served: yields what to evaluate, takes ``(rows, ...)``, and returns ``(B, ...)``."""

Evaluate: TypeAlias = Callable[["Sequence[int] | None", bool], Tensor]
"""Evaluates a place on some rows of the batch, or on all of them (``None``), and returns ``(rows, ...)``.

The second argument says whether it is only an audit, of which nothing may be kept.
"""


@frozen
class EngineSettings:
    """How the engine treats batches and branches.

    Attributes:
        copies: how often each sample stands in the batch (2 for a batch doubled for guidance), or ``None`` to see it
            from the latent that a run begins with: as many equal parts as it has.
        per_sample: whether every sample decides for itself, unless the site or the call says that it cannot.
        shared_branches: whether branches at the same t follow one decision.
        audit: fraction of the reused calls that is evaluated all the same.
        audit_seed: seed of the choice of audited calls.
    """

    copies: int | None = 1
    per_sample: bool = True
    shared_branches: bool = True
    audit: float = 0.0
    audit_seed: int = 0

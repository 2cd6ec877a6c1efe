"""The state of one run, and when one run ends and the next begins."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from cachepolicies._errors import RunError
from cachepolicies._host import DeclaredTimesteps
from cachepolicies._policy import Decision
from cachepolicies._reasons import SHAPE_CHANGED
from cachepolicies._step import RunInfo, direction_of
from cachepolicies._store import Store
from cachepolicies._units import row_rms

SHARED = "(shared)"
"""Key of the one decision group that serves all branches when decisions are shared."""


@frozen(eq=False)
class Declaration:
    """What the caller said of a run before it began.

    Attributes:
        given: the timesteps as given, or ``None`` where only their number was announced.
        announced_steps: number of steps, where the caller counts them itself and gives the index with every call.
        timesteps: the noise levels in order of visit, without repeats; ``None`` where they were not given.
    """

    given: DeclaredTimesteps | None
    announced_steps: int | None = None
    timesteps: tuple[float, ...] | None = field(init=False)

    @timesteps.default
    def _levels(self) -> tuple[float, ...] | None:
        # By noise level, not by position: a sampler that jumps back (RePaint) visits a level several times.
        if self.given is None:
            return None
        rising = direction_of(self.given.values) > 0
        return tuple(sorted(set(self.given.values), reverse=not rising))

    @property
    def num_steps(self) -> int | None:
        """Number of steps, as far as it was said."""
        return self.announced_steps if self.timesteps is None else len(self.timesteps)

    def snap(self, t: float, rounding: float) -> float:
        """Return the declared timestep that ``t`` is, up to relative rounding of its dtype; else t itself."""
        if self.timesteps is None:
            return t
        nearest = min(self.timesteps, key=lambda level: abs(level - t))
        return nearest if abs(nearest - t) <= rounding * max(abs(nearest), abs(t)) else t


@frozen(eq=False)
class Call:
    """One call of the denoiser, as the engine sees it.

    Attributes:
        x: ``(B, ...)`` the latent.
        t: noise level on the host.
        branch: name of the branch.
        labelled: whether the caller named the branch.
        conditioning: every argument but x and t, to tell apart calls at the same point.
        index: step of the run, where the caller knows it; otherwise it is found from t.
        signals: ``(B, ...)`` values from inside the model, by name.
        copies: tells how often each sample stands in the batch, where the settings leave that to be found out; asked
            when a run begins.
    """

    x: Tensor
    t: float
    branch: str
    labelled: bool
    conditioning: tuple[Any, ...]
    index: int | None = None
    signals: Mapping[str, Tensor] = field(factory=dict)
    copies: Callable[[], int] | None = None


@frozen(eq=False)
class LastCall:
    """What is remembered of a branch's last call to recognise the next; it keeps no argument alive.

    Attributes:
        t: noise level.
        mark: ``(2, B)`` largest magnitude and RMS of the latent's rows, which tell latents apart; ``None`` where no
            comparison can be needed.
        conditioning: the other arguments, their tensors as weak references.
    """

    t: float
    mark: Tensor | None
    conditioning: tuple[Any, ...]


@define(eq=False)
class Group:
    """The decisions that a set of branches follows: the policy's state and the decision at the current t.

    Attributes:
        state: what the policy returned last.
        refreshed: for each decision, serial number of the point where it was last evaluated; -1 before the first.
        point: serial number of the current decision.
        t: noise level of the current decision.
        served: branches that have followed the current decision.
        decision: the current decision as carried out.
    """

    state: Any
    refreshed: list[int]
    point: int = -1
    t: float | None = None
    served: set[str] = field(factory=set)
    decision: Decision | None = None


@define(eq=False)
class Pending:
    """An evaluation whose finiteness the host has not seen yet (accelerators only)."""

    peaks: Tensor
    branch: str
    rows: Sequence[int]
    point: int
    t: float


@define(eq=False)
class Run:
    """Everything that is remembered between the calls of one run, keyed by branch."""

    info: RunInfo
    notes: list[str]
    reshaped_branches: frozenset[str] = frozenset()
    groups: dict[str, Group] = field(factory=dict)
    stores: dict[str, Store] = field(factory=dict)
    last_calls: dict[str, LastCall] = field(factory=dict)
    not_finite: dict[tuple[str, int], str] = field(factory=dict)
    pending: list[Pending] = field(factory=list)
    last_t: float = 0.0
    points: int = 0

    def next_point(self) -> int:
        """Return the serial number of a new decision. It orders refreshes; no policy sees it."""
        self.points += 1
        return self.points

    def restart_cause(self, call: Call) -> str | None:
        """Return why this call cannot belong to the run, or ``None`` if it can."""
        info, x = self.info, call.x
        if (tuple(x.shape), x.dtype, x.device) != (info.shape, info.dtype, info.device):
            return SHAPE_CHANGED
        if info.direction * (call.t - self.last_t) < 0:
            return f"t went back from {self.last_t:g} to {call.t:g}"
        if call.t == info.first_t and call.branch in self.last_calls:
            return f"branch {call.branch!r} was called again at the first t, {call.t:g}"
        return None

    def refuse_unlabelled_branches(self, call: Call, peaks: Tensor) -> None:
        """Raise if two guidance branches are called one after the other without a label.

        Reuse would then hand one branch the output of the other. Tensors are compared, which waits for the device,
        only where an unnamed branch is called twice at one t.

        Args:
            call: the call to be served.
            peaks: ``(B,)`` largest magnitude of the latent's rows.

        Raises:
            RunError: the same latent came twice at the same t with other conditioning.
        """
        last = self.last_calls.get(call.branch)
        if last is None or last.mark is None or call.labelled or last.t != call.t:
            return
        mark = _mark(call, peaks)
        if last.mark.shape != mark.shape or not torch.equal(last.mark, mark):
            return
        if differs(last.conditioning, call.conditioning):
            raise RunError(
                f"the denoiser was called twice at the same x and t={call.t:g} with different conditioning. If these "
                'are guidance branches, name them: denoiser(x, t, ..., branch="cond") and branch="uncond"; if they '
                "are separate samplings, put each in `with denoiser.run(timesteps=...)`"
            )

    def remember(self, call: Call, peaks: Tensor | None) -> None:
        """Note that the call was served."""
        self.last_t = call.t
        if peaks is None or call.labelled or not call.conditioning:
            self.last_calls[call.branch] = LastCall(call.t, None, ())
        else:
            self.last_calls[call.branch] = LastCall(call.t, _mark(call, peaks), weakly(call.conditioning))


def check_declared(declaration: Declaration, t: float) -> None:
    """Check that the first call of a declared run lies among its timesteps.

    A sampler that adds noise before a step (churn) may begin somewhat above the first.

    Raises:
        RunError: it does not; most often the units differ.
    """
    if declaration.timesteps is None:
        return
    low, high = min(declaration.timesteps), max(declaration.timesteps)
    if not low <= t <= high + 0.5 * abs(high):
        first, last = declaration.timesteps[0], declaration.timesteps[-1]
        raise RunError(
            f"the run was declared with {len(declaration.timesteps)} timesteps from {first:g} to {last:g}, but its "
            f"first call has t={t:g}, which is not among them; declare the t that the denoiser is called with"
        )


def _mark(call: Call, peaks: Tensor) -> Tensor:
    return torch.stack([peaks.float(), row_rms(call.x.detach()).float()])


def weakly(value: Any) -> Any:
    """Return the value with weak references in the place of its tensors."""
    if isinstance(value, Tensor):
        return weakref.ref(value)
    if isinstance(value, dict):
        return {key: weakly(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(weakly(item) for item in value)
    return value


def differs(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Return whether conditioning differs: first by identity, then by value; ``a`` may hold weak references."""
    if len(a) != len(b):
        return True
    return any(_item_differs(p, q) for p, q in zip(a, b, strict=True))


def same_objects(known: tuple[Any, ...], conditioning: tuple[Any, ...]) -> bool:
    """Return whether conditioning consists of the very same tensors and equal plain values; reads no tensor.

    Args:
        known: as `weakly` keeps it.
        conditioning: of a call.
    """
    if len(known) != len(conditioning):
        return False
    return all(_same_object(p, q) for p, q in zip(known, conditioning, strict=True))


def _same_object(p: Any, q: Any) -> bool:
    p = _alive(p)
    if p is q:
        return True
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return False
    if isinstance(p, dict) and isinstance(q, dict):
        return p.keys() == q.keys() and all(_same_object(p[key], q[key]) for key in p)
    if isinstance(p, (list, tuple)) and isinstance(q, (list, tuple)):
        return same_objects(tuple(p), tuple(q))
    return type(p) is type(q) and _equal(p, q)


_GONE = object()
"""Stands for a tensor that nobody holds any more: it is no other object, and not ``None``."""


def _alive(item: Any) -> Any:
    if not isinstance(item, weakref.ref):
        return item
    tensor = item()
    return _GONE if tensor is None else tensor


def _equal(p: Any, q: Any) -> bool:
    return np.array_equal(p, q) if isinstance(p, np.ndarray) else bool(p == q)


def _item_differs(p: Any, q: Any) -> bool:
    p = _alive(p)
    if p is q:
        return False
    if isinstance(p, Tensor) and isinstance(q, Tensor):
        alike = (p.shape, p.dtype, p.device) == (q.shape, q.dtype, q.device)
        return not alike or not torch.equal(p, q)
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return True
    if isinstance(p, dict) and isinstance(q, dict):
        return p.keys() != q.keys() or any(_item_differs(p[key], q[key]) for key in p)
    if isinstance(p, (list, tuple)) and isinstance(q, (list, tuple)):
        return differs(tuple(p), tuple(q))
    return type(p) is not type(q) or not _equal(p, q)


def rounding_of(t: object) -> float:
    """Return the relative rounding of a noise level given as ``t``."""
    if isinstance(t, Tensor) and t.dtype.is_floating_point:
        return max(1e-6, torch.finfo(t.dtype).eps)
    return 1e-6

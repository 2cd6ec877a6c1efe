"""The state of one run: who decides, what was decided last, and what a call has to fit to belong to it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from cachepolicies.base.errors import RunError
from cachepolicies.base.foreign import writes_so_far
from cachepolicies.base.timesteps import slack_of
from cachepolicies.contracts.policy import Decision
from cachepolicies.contracts.reasons import EngineReason, RestartCause
from cachepolicies.contracts.step import RunInfo
from cachepolicies.engine.call import Call, Declaration
from cachepolicies.engine.conditioning import Conditioned, differs
from cachepolicies.engine.memory import Key, Memory

_STAGES = 7
"""Evaluations within one step of the widest solvers that control their error, of orders 4 and 5."""

_CHURN = 2.0**0.5 * (1.0 + 1e-6)
"""The most that noise added before a step raises its level by, with some room for rounding."""


@define(eq=False)
class LastCall:
    """What is remembered of a branch's last call to recognise the next.

    Attributes:
        t: noise level.
        latent: that it was called with; ``None`` where no comparison can be needed.
        version: how often the latent had been written on.
    """

    t: float
    latent: Tensor | None = None
    version: int = 0

    def may_be_of(self, x: Tensor) -> bool:
        """Return whether the call may have been of this latent; waits for the device where they are two tensors.

        Of one that was written on since nothing is known.
        """
        own = self.latent
        if own is None:
            return False
        if own is x or writes_so_far(own) != self.version:
            return True
        return own.shape == x.shape and own.dtype == x.dtype and own.device == x.device and torch.equal(own, x)


_CANNOT_BE_MISTAKEN = LastCall(math.nan)
"""Stands for every call that was named, or is conditioned on nothing."""


@define(eq=False)
class DecisionGroup:
    """The branches and places that follow one decision: the policy's state, and the decision at the current t.

    Attributes:
        state: what the policy returned last.
        refreshed: for each decision, serial number of the point where it was last evaluated; -1 before the first.
        point: serial number of the current decision.
        t: noise level of the current decision.
        served: branch and place of those that have followed the current decision.
        decision: the current decision as carried out.
        branch: for which the current decision was taken.
    """

    state: Any
    refreshed: list[int]
    point: int = -1
    t: float | None = None
    served: set[Key] = field(factory=set)
    decision: Decision | None = None
    branch: str = ""

    def follows(self, t: float, key: Key) -> Decision | None:
        """Return the decision that a branch follows at a place, ``None`` where it has to be taken anew."""
        return self.decision if self.t == t and key not in self.served else None

    def conclude(self, decision: Decision, state: Any) -> None:
        """Note a decision as it was carried out, and the policy's next state."""
        self.decision, self.state = decision, state
        for d, reuse in enumerate(decision.reuse):
            if not reuse:
                self.refreshed[d] = self.point


@define(eq=False)
class Run:
    """Everything that is known between the calls of one run.

    Attributes:
        info: what the policy is told of it.
        memory: what was evaluated, by branch and place.
        lost: branches whose memory was lost, and why.
        groups: by branch (or all branches) and place (or all places).
        last_calls: by branch.
        conditioned: what the last call of a branch was conditioned on.
        kept: what the site keeps between calls, by branch and place: the form of an output, say.
        origin: which generator called first; see `Call`.
        last_t: noise level of the last call.
        points: decisions so far.
        writes_input: whether the model writes on its latent; ``None`` before the first call is over.
        full: why the rest of the run is evaluated and not remembered, ``None`` where it is not.
        expected: whether the timesteps were not declared but expected, and the run has kept to them so far.
    """

    info: RunInfo
    memory: Memory
    lost: dict[str, EngineReason] = field(factory=dict)
    origin: int = 0
    groups: dict[Key, DecisionGroup] = field(factory=dict)
    last_calls: dict[str, LastCall] = field(factory=dict)
    conditioned: dict[str, Conditioned] = field(factory=dict)
    kept: dict[Key, Any] = field(factory=dict)
    last_t: float = 0.0
    points: int = 0
    writes_input: bool | None = None
    full: EngineReason | None = None
    expected: bool = False
    _at: int = 0
    _recent: deque[float] = field(factory=lambda: deque(maxlen=_STAGES))

    def as_expected(self, t: float) -> bool:
        """Return whether a call at t is at the step of the last call or at the one after it."""
        steps = self.info.timesteps or ()
        slack = slack_of(steps)
        for step in (self._at, self._at + 1):
            if step < len(steps) and abs(steps[step] - t) <= slack:
                self._at = step
                return True
        return False

    def next_point(self) -> int:
        """Return the serial number of a new decision. It orders refreshes; no policy sees it."""
        self.points += 1
        return self.points

    def restart_cause(self, call: Call) -> tuple[RestartCause, str] | None:
        """Return why this call cannot belong to the run, and the sentence that says so; ``None`` if it can."""
        info, x = self.info, call.x
        if x.shape != info.shape or x.dtype != info.dtype or x.device != info.device:
            cause = RestartCause.SHAPE_CHANGED
            return cause, cause.text
        if call.full is not None or (self.full is not None and not self._begins_again(call.t)):
            return None  # nothing tells its steps from those of another
        if info.direction * (call.t - self.last_t) < 0 and not self.is_churned(call.t):
            return RestartCause.T_WENT_BACK, f"t went back from {self.last_t:g} to {call.t:g}"
        if call.t == info.first_t and call.branch in self.last_calls:
            return RestartCause.FIRST_T_AGAIN, f"branch {call.branch!r} was called again at the first t, {call.t:g}"
        return None

    def _begins_again(self, t: float) -> bool:
        return self.info.direction * (t - self.info.first_t) <= 0

    def is_rejection(self, t: float) -> bool:
        """Return whether a solver goes back to try a step again: within its last step, to a level not declared.

        A solver that controls its error evaluates at several levels within a step (Runge-Kutta), and rejects those
        whose estimated error is too large. One that begins anew goes back further, or to where it began.
        """
        steps = self.info.timesteps
        if self.expected or (steps is not None and t in steps) or self._begins_again(t):
            return False
        farthest = self._recent[0] if self._recent else self.info.first_t
        return steps is not None or self.info.direction * (t - farthest) >= 0

    def is_churned(self, t: float) -> bool:
        """Return whether a sampler has added noise before a step, so that its level is somewhat above the last one's.

        "Churn" (Karras et al., arXiv 2206.00364, Algorithm 2) raises it by at most sqrt(2) - 1. A rise to a level that
        was declared is none: there a sampler goes back to an earlier step.
        """
        steps = self.info.timesteps
        falling = steps is not None and self.info.direction < 0 < self.last_t
        if steps is None or not falling or self.expected:
            return False
        return self.last_t < t <= _CHURN * self.last_t and t not in steps

    def index(self, call: Call) -> int | None:
        """Return the step that a call belongs to: the last one, if only noise was added since."""
        if call.index is not None:
            return call.index
        return self.info.index(self.last_t if self.is_churned(call.t) else call.t)

    def refuse_unlabelled_branches(self, call: Call) -> None:
        """Raise if two guidance branches are called one after the other without a label.

        Reuse would then hand one branch the output of the other. Tensors are compared, which waits for the device,
        only where an unnamed branch is called twice at one t.

        Args:
            call: the call to be served.

        Raises:
            RunError: the same latent came twice at the same t with other conditioning.
        """
        last = self.last_calls.get(call.branch)
        if last is None or last.latent is None or call.labelled or last.t != call.t or not last.may_be_of(call.x):
            return
        known = self.conditioned.get(call.branch)
        if known is not None and differs(known.kept, call.conditioning):
            raise RunError(
                f"the denoiser was called twice at the same x and t={call.t:g} with different conditioning, "
                "or with x written on in between. If these "
                'are guidance branches, name them: denoiser(x, t, ..., branch="cond") and branch="uncond"; if they '
                "are separate samplings, put each in `with denoiser.run(timesteps=...)`"
            )

    def note_call(self, call: Call, given: Tensor) -> None:
        """Note that the call was served.

        Args:
            call: as it was served.
            given: ``(B, ...)`` its latent; kept until the next call of an unnamed branch.
        """
        self.last_t = call.t
        self._recent.append(call.t)
        if call.labelled or not call.conditioning:
            self.last_calls[call.branch] = _CANNOT_BE_MISTAKEN
        else:
            self.last_calls[call.branch] = LastCall(call.t, given, writes_so_far(given))

    def note_conditioning(self, call: Call) -> None:
        """Forget what a branch remembers where what it is conditioned on has changed; the call is then evaluated."""
        known = self.conditioned.get(call.branch)
        if known is None:
            if call.conditioning:
                self.conditioned[call.branch] = Conditioned.of(call.conditioning)
            return
        if known.is_steady(call.conditioning):
            return
        if known.changes(call.conditioning):
            self.memory.forget_branch(call.branch)
            self.lost[call.branch] = EngineReason.CONDITIONING_CHANGED
        known.note(call.conditioning)


def check_origin(run: Run, call: Call) -> None:
    """Check that an undeclared run is not called by two generators in turn: they cannot be told apart otherwise.

    Raises:
        RunError: it is.
    """
    if run.origin != call.origin:
        raise RunError(
            f"the call at t={call.t:g} comes from another generator than the run in progress, and no run was declared: "
            "two samplings that take turns cannot be told apart. Put each in `with denoiser.run(timesteps=...)`"
        )


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

"""SpeCa (Liu et al., arXiv 2509.11628): draft the block stack step after step, and verify it at the last block."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import and_, ge, gt, instance_of, le, lt
from torch import Tensor

from cachepolicies import CachePolicy, Decision, Needs, NeedsError, PolicySettings, Reason, RunInfo, Setup, Step

_TINY = 1e-10
"""Added to what is divided by, as published."""

_NUMBER = and_(instance_of((int, float)), ge(0.0), lt(math.inf))


class Why(Reason):
    """Why a sample is computed or drafted."""

    WARM_UP = "one of the first steps, which are always computed"
    NOTHING_YET = "nothing to draft from"
    UNVERIFIED = "drafted, too soon to verify"
    VERIFIED = "drafted, and verified"
    REJECTED = "the last draft was too far off"
    LIMIT = "drafted as often as it may be"


@frozen
class SpeCa(PolicySettings):
    """Draft what the blocks add, and run only the last one, on its drafted input, to see whether the draft holds.

    After each computed step the whole stack is drafted: first ``unverified`` steps as they come, then each draft is
    verified. The last blocks run on their drafted input x, and what they compute, y, is compared with the drafted
    output y': ``e = mean(|y' - y| / (|y| + 1e-10))``. Where e exceeds ``max(base * decay^(i / N), floor)`` at step i of
    N, the next step is computed; it is in any case after ``most`` drafts. What flows on at a verified step is the
    draft: nothing is rolled back, as in the released code (the paper describes a rejection), and what the last blocks
    computed is compared and forgotten; only computed steps are drafted from.

    It reads the signal ``entered_streams``, and one number travels to the host at every verified step. It cuts at
    ``"blocks[:-m]+blocks[-m:]"``, where what is added to the streams is remembered, not every module's output as in the
    released code. Where no substitute is named, the paper's Taylor series in the number of the step drafts, of order 2:
    ``"taylor:order=2,differences=taylorseer,time=index"``. A drafted step costs nothing of the stack, a verified one
    the last m blocks; the memory is ``order + 1`` residuals of each of the two parts. It helps at high ratios with deep
    stacks, where some samples need more steps than others; the batch decides as one, and of guidance branches that are
    called apart the first one is verified and decides. What users run into: where the stack has few blocks, one of them
    at every step is much; e is a mean of ratios, so that a few entries of y near zero make it large, and ``base`` means
    something else for every model; what the last block adds may be small beside x, so that a bad draft of x shows
    little.

    Published: FLUX ``base=7.0, decay=0.3, unverified=2, most=8, floor=0.1, warm_up=3`` with order 2 at 50 steps
    (the defaults); HunyuanVideo ``base=1.0, decay=0.1, unverified=4, most=12, floor=0.1, warm_up=1`` with order 1; DiT
    ``floor=0.01``.

    Attributes:
        base: limit of e at the first step; 0, with ``floor=0``, rejects every draft that is verified.
        decay: by which the limit is multiplied from the first step to the last, at most 1.
        floor: lowest limit of e.
        unverified: drafts after a computed step that are not verified; with ``most`` or more, none ever is.
        most: drafts one after the other; 0 computes everything.
        warm_up: steps, from the first, that are computed, at least 1.
        last: m: blocks at the end that a verified step runs.
    """

    name: ClassVar[str] = "speca"

    base: float = field(default=7.0, validator=_NUMBER)
    decay: float = field(default=0.3, validator=[instance_of((int, float)), gt(0.0), le(1.0)])
    floor: float = field(default=0.1, validator=_NUMBER)
    unverified: int = field(default=2, validator=[instance_of(int), ge(0)])
    most: int = field(default=8, validator=[instance_of(int), ge(0)])
    warm_up: int = field(default=3, validator=[instance_of(int), ge(1)])
    last: int = field(default=1, validator=[instance_of(int), ge(1)])

    @property
    def site(self) -> str:
        """The stack in front of the last blocks, and these."""
        return f"blocks[:-{self.last}]+blocks[-{self.last}:]"

    @property
    def substitute(self) -> str:
        """A Taylor series of order 2 in the number of the step, of difference quotients, as published for FLUX."""
        return "taylor:order=2,differences=taylorseer,time=index"

    def limit(self, index: int, steps: int) -> float:
        """Return the largest e with which a draft is accepted at a step.

        Args:
            index: i, number of the step from 0.
            steps: N of the run.
        """
        falling: float = self.decay ** (index / steps)
        return max(self.base * falling, self.floor)

    def resolve(self, setup: Setup) -> Drafts:
        """Return the policy for the places of the site.

        Raises:
            NeedsError: the site has one place only.
        """
        site = setup.site
        if site is not None and len(site.places) < 2:
            raise NeedsError(
                f"policy {self.name!r} drafts the block stack, and runs its last blocks to verify what it drafted: "
                f"site {site.name!r} has one place for all; leave the site out, or use site={self.site!r}"
            )
        return Drafts(self, "" if site is None else site.places[-1])


@frozen
class _Seen:
    """What is known between the steps of a run, an entry for each deciding sample.

    Attributes:
        drafted: steps since the last computed one; ``None`` before the first.
        errors: e of the last draft, ``nan`` where it was not verified.
        limit: what these were compared with.
    """

    drafted: tuple[int | None, ...]
    errors: tuple[float, ...]
    limit: float = 0.0


@frozen
class Drafts(CachePolicy):
    """`SpeCa` on a site.

    Attributes:
        settings: as given.
        last: place that is verified.
    """

    name: ClassVar[str] = "speca"

    settings: SpeCa
    last: str

    @property
    def needs(self) -> Needs:
        """What enters the place that is verified, and the number of the step."""
        return Needs(signals=("entered_streams",), run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless nothing may be drafted."""
        return self.settings.most > 0

    def start(self, run: RunInfo) -> _Seen:
        """Return what is known: nothing yet."""
        return _Seen((None,) * run.decisions, (math.nan,) * run.decisions)

    def decide(self, step: Step, state: _Seen) -> Decision:
        """Draft unless the last draft was rejected, or enough were made; verify where one is due."""
        count, given = step.run.decisions, self.settings
        if step.index is None or step.index < given.warm_up:
            return Decision.same(False, Why.WARM_UP, count)
        reason = tuple(self._reason(at, e, state.limit) for at, e in zip(state.drafted, state.errors, strict=True))
        verify = (self.last,) if Why.VERIFIED in reason else ()
        reuse = tuple(why in (Why.UNVERIFIED, Why.VERIFIED) for why in reason)
        if all(math.isnan(error) for error in state.errors):
            return Decision(reuse, reason, verify=verify)
        return Decision(reuse, reason, state.errors, (state.limit,) * count, False, verify)

    def _reason(self, drafted: int | None, error: float, limit: float) -> Why:
        if drafted is None:
            return Why.NOTHING_YET
        if error > limit:
            return Why.REJECTED
        if drafted >= self.settings.most:
            return Why.LIMIT
        return Why.UNVERIFIED if drafted < self.settings.unverified else Why.VERIFIED

    def observe(self, step: Step, decision: Decision, output: Tensor, state: _Seen) -> _Seen:
        """Count the drafts; what was verified before is dealt with."""
        if not self.reuses:
            return state
        drafted = tuple(
            0 if not kept else None if at is None else at + 1
            for at, kept in zip(state.drafted, decision.reuse, strict=True)
        )
        return _Seen(drafted, (math.nan,) * len(drafted))

    def verify(self, step: Step, place: str, drafted: Tensor, computed: Tensor, state: _Seen) -> _Seen:
        """Note how far off a draft was, where it was due to be verified."""
        if step.index is None or step.run.num_steps is None:
            return state
        dtype = torch.promote_types(drafted.dtype, torch.float32)
        entered = step.signals["entered_streams"].to(dtype)
        there, made = entered + drafted.to(dtype), entered + computed.to(dtype)
        off = ((there - made).abs() / (made.abs() + _TINY)).flatten(1).mean(1)
        (read,) = step.read(off)
        errors = []
        for decision, at in enumerate(state.drafted):
            rows = step.run.layout.rows_of(decision)
            error = sum(read[row] for row in rows) / len(rows)
            due = at is not None and at > self.settings.unverified
            # What is no number is no draft to go on from.
            errors.append((math.inf if math.isnan(error) else error) if due else math.nan)
        return evolve(state, errors=tuple(errors), limit=self.settings.limit(step.index, step.run.num_steps))

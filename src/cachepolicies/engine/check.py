"""Checks on the way: what a policy, a substitute or a model returned, and whether there is something sound to reuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from cachepolicies.base.errors import InputError, PolicyError
from cachepolicies.contracts.policy import CachePolicy, Decision
from cachepolicies.contracts.reasons import EngineReason, Reason
from cachepolicies.contracts.step import Step
from cachepolicies.engine.call import Call
from cachepolicies.engine.memory import Key
from cachepolicies.engine.run import DecisionGroup, Run


def decided(policy: CachePolicy, step: Step, state: object) -> Decision:
    """Ask a policy, and check its answer.

    Raises:
        PolicyError: it is no decision, has not one entry for each deciding sample, or entries of another type.
    """
    decision = policy.decide(step, state)
    if _is_sound(decision, step.run.decisions) and (True not in decision.reuse or policy.reuses):
        if decision.verify:
            _check_verified(policy, decision)
        return decision
    if not isinstance(decision, Decision):
        raise PolicyError(f"policy {policy.name!r} decided {decision!r}; decide returns a Decision")
    count = step.run.decisions
    for part in ("reuse", "reason", "score", "tolerance"):
        values = getattr(decision, part)
        if values is None and part in ("score", "tolerance"):
            continue
        if not isinstance(values, tuple) or len(values) != count:
            size = f"of length {len(values)}" if isinstance(values, tuple) else f"as a {type(values).__name__}"
            raise PolicyError(
                f"policy {policy.name!r} returned {part} {size}; it is a tuple of {count}, one entry for each "
                "deciding sample"
            )
        if part in ("score", "tolerance") and any(not isinstance(value, Real) for value in values):
            raise PolicyError(f"policy {policy.name!r} returned {part} {values!r}; its entries are numbers")
    _check_verified(policy, decision)
    for reuse, reason in zip(decision.reuse, decision.reason, strict=True):
        if type(reuse) is not bool:
            raise PolicyError(f"policy {policy.name!r} returned reuse {decision.reuse!r}; its entries are bools")
        if isinstance(reason, Reason):
            continue
        raise PolicyError(
            f"policy {policy.name!r} returned reason {decision.reason!r}; its entries are members of an enumeration "
            'that derives from cachepolicies.Reason: class Why(Reason): ROOM = "room for one more"'
        )
    if any(decision.reuse) and not policy.reuses:
        raise PolicyError(f"policy {policy.name!r} reuses, but its property `reuses` says that it never does")
    return decision


def _check_verified(policy: CachePolicy, decision: Decision) -> None:
    """Check which places a policy wants to have verified.

    Raises:
        PolicyError: they are no tuple of names; or the policy has nothing to be told by.
    """
    places: object = decision.verify
    if not isinstance(places, tuple) or not all(isinstance(place, str) for place in places):
        raise PolicyError(f"policy {policy.name!r} returned verify {places!r}; it is a tuple of names of places")
    if places and not policy.verifies:
        raise PolicyError(
            f"policy {policy.name!r} wants {', '.join(map(repr, places))} to be verified, and has no method `verify` "
            "that could be told what came of it"
        )


def _is_sound(decision: Any, count: int) -> bool:
    """Return whether a decision is as it should be; asked at every call. What is wrong with it is found out apart."""
    if decision.__class__ is not Decision or type(decision.reuse) is not tuple or type(decision.reason) is not tuple:
        return False
    if type(decision.verify) is not tuple:
        return False
    if len(decision.reuse) != count or len(decision.reason) != count:
        return False
    found: Any = decision
    for reuse in found.reuse:
        if reuse is not True and reuse is not False:
            return False
    for reason in found.reason:
        if not isinstance(reason, Reason):
            return False
    for numbers in (decision.score, decision.tolerance):
        if numbers is None:
            continue
        if type(numbers) is not tuple or len(numbers) != count:
            return False
        for number in numbers:
            if type(number) is not float:
                return False
    return True


def sound(
    run: Run,
    group: DecisionGroup,
    call: Call,
    key: Key,
    wanted: Decision,
    entering: Callable[[], Sequence[bool]],
) -> Decision:
    """Turn reuse into evaluation where there is nothing sound to reuse, and say why.

    No tensor is looked at where the policy wants to evaluate everything.

    Args:
        run: that the call belongs to.
        group: what follows the decision.
        call: that is served.
        key: branch and place.
        wanted: what the policy decided.
        entering: tells for every row of the call's latent whether it is finite.
    """
    gradient = call.x.requires_grad and torch.is_grad_enabled()  # a remembered output has none
    if call.full is not None or gradient:
        why = EngineReason.GRADIENT_WANTED if call.full is None else call.full
        return evolve(wanted, reuse=(False,) * len(wanted.reuse), reason=(why,) * len(wanted.reuse))
    lost = run.lost.get(call.branch) if run.lost else None
    if True not in wanted.reuse and lost is None:
        return wanted
    layout = run.info.layout
    reuse, reason = list(wanted.reuse), list(wanted.reason)
    if True in reuse:
        run.memory.settle(key)
        store, finite = run.memory.store(key), entering()
        for d in range(layout.decisions):
            if not reuse[d]:
                continue
            rows = layout.rows_of(d)
            # A branch that was not called at the reference holds something older: the score is not about that.
            missing = [row for row in rows if store is None or not store.holds(row, group.refreshed[d])]
            if not all(finite[row] for row in rows):
                reuse[d], reason[d] = False, EngineReason.NON_FINITE_INPUT
            elif missing:
                reuse[d], reason[d] = False, run.memory.why_missing(key, missing[0])
    if lost is not None:
        reason = [lost if why is EngineReason.NOTHING_TO_REUSE else why for why in reason]
    if (tuple(reuse), tuple(reason)) == (wanted.reuse, wanted.reason):
        return wanted
    return evolve(wanted, reuse=tuple(reuse), reason=tuple(reason))


def evaluated(output: Tensor, rows: int) -> Tensor:
    """Return what a model computed for some rows.

    Raises:
        InputError: it has another number of rows.
    """
    if output.ndim < 1 or output.shape[0] != rows:
        raise InputError(
            f"the denoiser returned a tensor of shape {tuple(output.shape)} for {rows} rows; its first dimension is "
            "the batch"
        )
    return output

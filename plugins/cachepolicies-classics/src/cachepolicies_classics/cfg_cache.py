"""CFG-Cache (Lv et al., FasterCache, arXiv 2410.19355): the unconditional branch is made from the conditional one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from attrs import field, frozen
from attrs.validators import deep_iterable, ge, instance_of, le, min_len

from cachepolicies import CachePolicy, Decision, Needs, Step
from cachepolicies_classics._reasons import Why
from cachepolicies_classics.from_branch import FromBranch


def _names(values: Iterable[str] | str) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


@frozen
class CFGCache(CachePolicy):
    """Evaluate one guidance branch at every n-th step only, from a step on, and all the others at every step.

    The part of FasterCache that leaves out the unconditional branch; the other part is ``fastercache``. What stands in
    is made from the conditional output at the same t and the difference of the two when both were evaluated last; low
    and high frequencies of that difference are scaled apart. See ``from-branch``.

    It reads nothing but the number of the step. It cuts at the site ``"output"``; ``from-branch`` stands in. It saves
    at most half of a guided step, and costs the memory of a few outputs. It helps wherever guidance takes two
    evaluations, image and video alike; without guidance, and with guidance that is distilled into the network, there
    is nothing to leave out, and a warning says that nothing was reused.

    Branches may be separate calls or one doubled batch. Separate calls are known by their names: those of a pipeline's
    ``cache_context``, ``branch=`` of the wrapper, or ``"branch 2"`` for the second that a pipeline calls without names.
    The one that is left out has to be called *after* the other, as nearly all pipelines do; where it comes before,
    there is nothing yet to make it from, which is an error. The roles may then be exchanged: name the other one. Of a
    batch ``cat([uncond, cond])`` the halves are ``"copy 1"`` and ``"copy 2"``, and only the rows of one are evaluated;
    nothing tells which half is which, so name ``"copy 2"`` where the unconditional one comes second, as in DiT's
    pipeline. The network's arguments have to be such that rows can be cut. In place it is seen from the first latent
    whether a batch is doubled; where samples begin from equal latents, say ``cfg="separate"`` or ``cfg="batched"``.

    What users run into: the network's output has to lie on a grid, ``(B, C, ..., H, W)``, or its adapter has to say how
    it does; tokens that nothing is known of are refused where something is first to stand in. It cannot be enabled on
    a pipeline together with another policy; in a loop of one's own, wrap a network on which ``fastercache`` is enabled,
    there with ``branches="independent"``.

    Published, steps, from step, n, and settings of ``from-branch``: Latte 50, 18, 5, ``low=1.1, low_until=0.9,
    high=1.1, high_from=0.9``; CogVideoX 50, 18, 5, ``low_until=0.8, high_from=0.6``; Open-Sora 1.2 30, 12, 5,
    ``low=1.15, low_until=0.8333, high=1.15, high_from=0.6667``; Open-Sora-Plan 150, 40, 6, ``low=1.1, low_until=0.8667,
    high=1.2, high_from=0.6667``. Step m of N is ``start_after=m/N``.

    Attributes:
        start_after: fraction of the steps, from the first, at which everything is evaluated.
        every: n: behind them, steps 0, n, 2 n, ... of the run evaluate everything; 1 leaves out nothing.
        branches: names of the branch that is left out; those of them that do not come are passed over.
    """

    name: ClassVar[str] = "cfg-cache"
    site: ClassVar[str] = "output"

    start_after: float = field(default=0.36, validator=[instance_of((int, float)), ge(0.0), le(1.0)])
    every: int = field(default=5, validator=[instance_of(int), ge(1)])
    branches: tuple[str, ...] = field(
        default=("uncond", "copy 1"), converter=_names, validator=[deep_iterable(instance_of(str)), min_len(1)]
    )

    @property
    def substitute(self) -> FromBranch:
        """From the conditional branch."""
        return FromBranch()

    @property
    def needs(self) -> Needs:
        """The run length."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless nothing is left out."""
        return self.every > 1 and self.start_after < 1.0

    @property
    def by_branch(self) -> bool:
        """Yes."""
        return True

    def decide(self, step: Step, state: None) -> Decision:
        """Leave the branch out between the steps at which everything is evaluated."""
        count = step.run.decisions
        if step.in_first(self.start_after):
            return Decision.same(False, Why.ALWAYS, count)
        if step.index is None or step.index % self.every == 0:
            return Decision.same(False, Why.KEY, count)
        reuse = tuple(branch in self.branches for branch in step.branches)
        return Decision(reuse, tuple(Why.HELD if left_out else Why.ALWAYS for left_out in reuse))

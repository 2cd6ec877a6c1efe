"""What is compared: one way of sampling, by its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen
from torch import Tensor

from cachepolicies.comparison.results import CandidateKind
from cachepolicies.comparison.workload import Workload
from cachepolicies.contracts.policy import PolicySettings
from cachepolicies.contracts.site import Site
from cachepolicies.policies.limits import Limits
from cachepolicies.profiles.schema import Profile

UNCACHED = "uncached"


class ForeignDenoiser(Protocol):
    """Somebody else's cache around a denoiser; a `cachepolicies.contracts.denoiser.RunAwareDenoiser`."""

    evaluations: int
    """How often the network ran in the last run."""

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or reuse."""


@frozen
class Candidate:
    """One way of sampling to be compared with the uncached one.

    Attributes:
        label: in the table; unique.
        policy: what `CachedDenoiser` takes as policy, ``"best"`` for what it does where none is named; ``None`` for the
            bare model, with fewer steps then.
        num_steps: of the sampler; ``None`` for the workload's own.
        profile: what `CachedDenoiser` takes as profile.
        substitute: what stands in for a skipped evaluation, as `CachedDenoiser` takes it.
        site: where the evaluation is cut, as `CachedDenoiser` takes it.
        budget: what a run may cost, as `CachedDenoiser` takes it.
        target: what it has to reach instead.
        limits: laid around the policy.
        baselines: whether the baselines are sampled for it, where the comparison has them.
        kind: what the report shows it as.
        matches: label of the candidate that a baseline was matched to.
        foreign: instead of a policy, makes somebody else's cached denoiser for a workload, which counts its own
            ``evaluations`` in a run.
    """

    label: str
    policy: str | PolicySettings | None = None
    num_steps: int | None = None
    profile: Profile | str | Path | None = None
    substitute: str | None = None
    site: str | Site | None = None
    limits: Limits | None = None
    baselines: bool = True
    matches: str | None = None
    budget: int | float | str | None = None
    target: str | None = None
    foreign: Callable[[Workload], ForeignDenoiser] | None = None
    kind: CandidateKind = field(kw_only=True)

    @kind.default
    def _kind_of_policy(self) -> CandidateKind:
        if self.foreign is not None:
            return "foreign"
        return "fewer steps" if self.policy is None else "policy"

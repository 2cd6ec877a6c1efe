"""What is compared: one way of sampling, by its settings."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from cachepolicies._policy import CachePolicy
from cachepolicies.comparison.results import Kind
from cachepolicies.profiles.schema import Profile

UNCACHED = "uncached"


@frozen
class Candidate:
    """One way of sampling to be compared with the uncached one.

    Attributes:
        label: in the table; unique.
        policy: what `CachedDenoiser` takes as policy; ``None`` for the bare model, with fewer steps then.
        num_steps: of the sampler; ``None`` for the workload's own.
        profile: what `CachedDenoiser` takes as profile.
        substitute: what stands in for a skipped evaluation.
        site: where the evaluation is cut, as `CachedDenoiser` takes it.
        baselines: whether the baselines are sampled for it, where the comparison has them.
        kind: what the report shows it as.
        matches: label of the candidate that a baseline was matched to.
    """

    label: str
    policy: str | CachePolicy | None = None
    num_steps: int | None = None
    profile: Profile | str | Path | None = None
    substitute: str = "hold"
    site: str = "output"
    baselines: bool = True
    kind: Kind = field(kw_only=True)
    matches: str | None = None

    @kind.default
    def _kind_of_policy(self) -> Kind:
        return "fewer steps" if self.policy is None else "policy"

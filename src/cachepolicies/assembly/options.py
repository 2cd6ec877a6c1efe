"""The options that both ways in share, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen
from attrs.validators import optional

from cachepolicies.base.settings import boolean, fraction, non_negative_int, one_of
from cachepolicies.contracts.adapter import Adapter
from cachepolicies.engine.call import EngineSettings

Guidance = Literal["auto", "separate", "batched"]
"""Whether the batch is doubled for guidance; ``"auto"`` sees it from the latent that a run begins with."""

Branches = Literal["shared", "independent"]
"""Whether the calls at one t share the decision of the first, or each branch decides for itself."""

_COPIES: Mapping[str, int | None] = {"auto": None, "separate": 1, "batched": 2}


@frozen
class Options:
    """How batches and branches are treated; see `cachepolicies.CachedDenoiser`.

    Attributes:
        cfg: whether the batch is doubled for guidance.
        branches: whether branches at one t share a decision.
        per_sample: whether every sample decides for itself; ``None`` as the adapter says.
        audit: fraction of the reused calls that is evaluated all the same.
        audit_seed: seed of that choice.
    """

    cfg: str = field(validator=one_of("auto", "separate", "batched"))
    branches: str = field(validator=one_of("shared", "independent"))
    per_sample: bool | None = field(validator=optional(boolean))
    audit: float = field(validator=fraction)
    audit_seed: int = field(validator=non_negative_int)

    def for_engine(self, adapter: Adapter | None) -> EngineSettings:
        """Return them as the engine takes them, with what is known of the model's class."""
        independent = adapter is None or adapter.rows_independent
        return EngineSettings(
            copies=_COPIES[self.cfg],
            per_sample=independent if self.per_sample is None else bool(self.per_sample),
            shared_branches=self.branches == "shared",
            audit=float(self.audit),
            audit_seed=int(self.audit_seed),
        )

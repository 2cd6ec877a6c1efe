"""What the modules of a block compute, for the block classes that several networks share.

Where a block applies a gate to what such a module returns, the module's output is what comes before it.
"""

from __future__ import annotations

from collections.abc import Mapping

from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL

SELF: Mapping[str, str] = {SPATIAL: "attn1", MLP: "ff"}
"""Attention among the tokens, then the MLP."""

SELF_AND_CROSS: Mapping[str, str] = {SPATIAL: "attn1", CROSS: "attn2", MLP: "ff"}
"""Attention among the tokens, attention to the text, the MLP."""

JOINT: Mapping[str, str | tuple[str, ...]] = {SPATIAL: "attn", MLP: ("ff", "ff_context")}
"""One attention over two streams, and an MLP for each."""

PARALLEL: Mapping[str, str] = {SPATIAL: "attn", MLP: "proj_mlp"}
"""Attention and MLP beside each other, and one projection behind both, which is computed at every step."""

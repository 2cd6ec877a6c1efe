"""The reasons that the engine itself gives in a trace; policies add their own."""

from __future__ import annotations

NOTHING_TO_REUSE = "nothing to reuse"
"""The row has no remembered output that belongs to the reference the policy decided on."""

NON_FINITE_INPUT = "non-finite input"
"""The latent has a nan or inf: evaluated, and the result not remembered."""

NON_FINITE_OUTPUT = "non-finite output"
"""The last evaluation of this row returned a nan or inf, which was not remembered."""

GRADIENT_WANTED = "gradient wanted"
"""The latent requires a gradient, which only an evaluation has."""

SHAPE_CHANGED = "shape, dtype or device changed"
"""The run restarted because the latent no longer fits what is remembered."""

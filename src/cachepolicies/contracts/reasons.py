"""Why a decision was what it was, and why a run began again: enumerations with a text, compared by identity."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """Why a sample was evaluated or reused. It has no members: every policy derives its own from it.

    ```python
    class Why(Reason):
        WARM_UP = "the first part of the run"
        ROOM = "room for one more reuse"
    ```

    The value is a short phrase for people, which a trace prints and writes to JSON. Code compares members, never
    phrases.
    """

    def __str__(self) -> str:
        return str(self.value)

    @property
    def text(self) -> str:
        """The phrase."""
        return str(self.value)


class EngineReason(Reason):
    """The reasons that the engine itself gives; policies add their own."""

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

    CONDITIONING_CHANGED = "the conditioning changed"
    """What the branch is conditioned on is not what it was when the remembered output was computed."""

    CALLED_AGAIN = "the same call again"
    """One latent with one conditioning came twice at one step: what differs is inside of the model."""

    STEPS_REJECTED = "the solver rejects steps"
    """A solver that controls its error goes back and tries a smaller step; it has to see the model as it is."""

    WRITES_MEMORY = "the call writes a memory"
    """Its blocks keep keys and values that later calls read."""

    SIDE_BY_SIDE = "several latents at one step"
    """Several latents go through the same steps in turn, and nothing tells which is which."""


class RestartCause(Enum):
    """Why a call cannot belong to the run in progress, so that another begins."""

    SHAPE_CHANGED = "shape, dtype or device changed"
    T_WENT_BACK = "t went back"
    FIRST_T_AGAIN = "a branch was called again at the first t"

    @property
    def text(self) -> str:
        """The phrase that a trace prints."""
        return self.value

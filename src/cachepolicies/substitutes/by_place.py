"""By place: one substitute for the denoiser's output, another for the places inside the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import evolve, field, frozen
from torch import Tensor

from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import Context, Prediction, Refresh, Substitute
from cachepolicies.engine.call import WHOLE
from cachepolicies.substitutes.resolve import as_substitute


@frozen
class ByPlace(Substitute):
    """Extrapolate the output of a skipped call in one way, and what modules of a computed call return in another.

    For sites such as ``"output+attention+mlp"``. As much is remembered everywhere as the one with the longer history
    wants. As a spec, ``"by-place:output='linear:time=path,correct=0.8',inside=hold"``.

    Attributes:
        output: stands in for the whole call; it may correct.
        inside: stands in at every other place; its corrections are not made.

    Raises:
        PolicyError: a value is no substitute.
        SettingsError: a spec is malformed, or a setting in it is wrong.
        UnknownNameError: no substitute is registered under a name.
    """

    name: ClassVar[str] = "by-place"

    output: Substitute = field(factory=lambda: as_substitute("linear"), converter=as_substitute)
    inside: Substitute = field(factory=lambda: as_substitute("hold"), converter=as_substitute)

    @property
    def _both(self) -> tuple[Substitute, Substitute]:
        return self.output, self.inside

    def resolve(self, setup: Setup) -> ByPlace:
        """Return it with both resolved; raises as they do."""
        return evolve(self, output=self.output.resolve(setup), inside=self.inside.resolve(setup))

    @property
    def history(self) -> int:
        """The longer one."""
        return max(one.history for one in self._both)

    @property
    def guard(self) -> float | None:
        """That of the output's; it holds inside too."""
        return self.output.guard

    @property
    def notes(self) -> Sequence[str]:
        """What both have to say."""
        return [note for one in self._both for note in one.notes]

    @property
    def signals(self) -> frozenset[str]:
        """Those of both."""
        return self.output.signals | self.inside.signals

    @property
    def keeps_signals(self) -> frozenset[str]:
        """Those of both."""
        return self.output.keeps_signals | self.inside.keeps_signals

    @property
    def wants_input(self) -> bool:
        """Whether either does."""
        return any(one.wants_input for one in self._both)

    @property
    def recalls(self) -> int:
        """As many values as the one that recalls more."""
        return max(one.recalls for one in self._both)

    @property
    def wants_branches(self) -> bool:
        """Whether either does."""
        return any(one.wants_branches for one in self._both)

    @property
    def keeps_branches(self) -> bool:
        """Whether either does."""
        return any(one.keeps_branches for one in self._both)

    @property
    def adds_input(self) -> bool:
        """Whether either does."""
        return any(one.adds_input for one in self._both)

    @property
    def corrects(self) -> bool:
        """Whether the output's does."""
        return self.output.corrects

    def at(self, place: str) -> Substitute:
        """Return the one that stands in at a place."""
        return self.output if place == WHOLE else self.inside

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor | Prediction:
        """Return the stand-in of the one that the place has."""
        one = self.at(context.place)
        return one.predict(_of(one, context), history[: one.history])

    def correction(self, context: Context, history: Sequence[Refresh]) -> Tensor | None:
        """Return the correction of the output's; nothing inside."""
        if context.place != WHOLE:
            return None
        return self.output.correction(_of(self.output, context), history[: self.output.history])


def _of(one: Substitute, context: Context) -> Context:
    """Return the present as one of the two asked for it."""
    return evolve(
        context,
        input=context.input if one.wants_input else None,
        passed=context.passed[: one.recalls],
        entered=context.entered[: one.recalls] if one.wants_input else (),
    )

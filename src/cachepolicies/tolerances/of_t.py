"""Of t: the tolerance is a function of the noise level that the user gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import Attribute, field, frozen

from cachepolicies.base.settings import refuse
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.tolerance import ToleranceAt, ToleranceSchedule, checked

if TYPE_CHECKING:
    from cachepolicies.contracts.score import Score


def _function(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if not callable(value) or isinstance(value, type):
        refuse(instance, attribute, value, "a function of t")


@frozen
class OfT(ToleranceSchedule):
    """A function of t, as it is. It is not registered: a function cannot be written in a spec.

    Attributes:
        function: t, in the units the denoiser is called with, to the tolerance, an RMS change of the output.
    """

    name: ClassVar[str] = "of-t"

    function: Callable[[float], float] = field(validator=_function)

    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the function of the step's t; it raises `SettingsError` where the user's returns no tolerance."""
        function = self.function
        return lambda step: checked(function(step.t), step, "epsilon")

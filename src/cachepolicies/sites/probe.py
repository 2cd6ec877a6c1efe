"""Looking at the block stack without touching it: its residual and its signals, as a calibration needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from torch import Tensor, nn

from cachepolicies.contracts.adapter import Adapter
from cachepolicies.engine.call import Arrival
from cachepolicies.sites._gate import gates
from cachepolicies.sites._rows import by_sample
from cachepolicies.sites.blocks import BlocksSite


@frozen(eq=False)
class Observation:
    """One pass through the block stack.

    Attributes:
        residuals: one for each stream, ``(k * B, tokens, ...)`` as it flows through the blocks.
        signals: name to its value, ``(B, ...)``.
    """

    residuals: tuple[Tensor, ...]
    signals: Mapping[str, Tensor]


class BlocksProbe(BlocksSite):
    """Observes the stack; every call runs as it is."""

    def __init__(self, network: nn.Module, adapter: Adapter) -> None:
        super().__init__(network, adapter)
        self._observed: list[Observation] = []
        self._signals_now: Mapping[str, Tensor] = {}

    def observe(self, function: Callable[[], Any], rows: int) -> tuple[Any, list[Observation]]:
        """Call a function that calls the network.

        Args:
            function: calls the denoiser.
            rows: of the denoiser's batch.

        Returns:
            What the function returned, and an observation of every pass through the stack, in order.

        Raises:
            RunError: the stack was not reached.
            InputError: what flows through it is not as the adapter says.
        """
        self._observed = []
        self._begin("capture", rows)
        with gates(self.handlers(self.signals)):
            output = function()
        self._check_left()
        observed, self._observed = self._observed, []
        return output, observed

    def enter(self, arguments: Mapping[str, Any]) -> None:
        """Note what enters, and the signals; a network may be called several times in one call of the denoiser."""
        self._pass.entered = False
        self._take(arguments)
        self._signals_now = {name: self._signal(name, arguments) for name in sorted(self.signals)}
        self.arrive(Arrival())

    def capture(self, leaving: list[Tensor]) -> None:
        """Take the residual, detached."""
        residuals = tuple(residual.detach() for residual in self._residuals(leaving))
        self._observed.append(Observation(residuals, self._signals_now))
        self._entering = []
        self.leave(None)


def token_norms(residual: Tensor, rows: int) -> Tensor:
    """Return the norm over the channels of every token of a residual ``(k * B, ..., channels)``, ``(B, tokens)``."""
    norms = residual.float().norm(dim=-1)
    return by_sample(norms.reshape(norms.shape[0], -1), rows, "a residual")

"""The denoiser's output as the site: works with any callable (SenCache, arXiv 2602.24208, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen
from torch import Tensor, nn

from cachepolicies.base.errors import RowsUnknownError
from cachepolicies.base.outputs import form_of, tensor_of
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal, SignalInput
from cachepolicies.contracts.site import ResolvedSite, Site
from cachepolicies.engine.call import WHOLE, Arrival
from cachepolicies.engine.engine import ServedCall
from cachepolicies.engine.invocation import Invocation
from cachepolicies.sites.signals import outside_signals, read_signal


@frozen
class Output(Site):
    """Cuts where the denoiser returns: a skipped evaluation runs nothing of it."""

    name: ClassVar[str] = "output"

    def resolve(self, setup: Setup) -> OutputSite:
        """Return the site; any callable has an output."""
        return OutputSite(outside_signals(setup), network=setup.network)


@frozen(eq=False)
class OutputSite(ResolvedSite):
    """The output of a denoiser.

    Attributes:
        readable: the signals that are read from what the denoiser is called with, by name.
        network: the module inside the denoiser, ``None`` where there is none.
    """

    name: ClassVar[str] = "output"

    readable: Mapping[str, Signal] = field(factory=dict)
    shares: Mapping[str, float] = field(factory=lambda: {WHOLE: 1.0}, repr=False)
    network: nn.Module | None = field(default=None, repr=False)

    @property
    def replaces_evaluations(self) -> bool:
        """Yes."""
        return True

    @property
    def signals(self) -> frozenset[str]:
        """Those that need nothing from inside the model."""
        return frozenset(self.readable)

    def serve(self, served: ServedCall, invocation: Invocation) -> Any:
        """Serve one call; see `ResolvedSite.serve`."""
        own: list[Any] = []

        def evaluate(rows: Sequence[int] | None, audit: bool) -> Tensor:
            if rows is None and served.rows_may_part:
                invocation.check_rows()
            output = invocation.run(rows)
            prediction, form = tensor_of(output), form_of(output)
            if served.rows_may_part and form.extra_tensors:
                raise RowsUnknownError(
                    "the denoiser returns further tensors beside its prediction, which cannot be merged row by row; "
                    "use per_sample=False"
                )
            if not audit:
                served.keep(WHOLE, form)
                own[:] = prediction, output
            return prediction

        call, signals = served.call, {}
        for name in served.wanted_signals():
            at = SignalInput(call.x, call.t, self.network, call=invocation.arguments)
            signals[name] = read_signal(name, self.readable[name].read(at), invocation.batch, "the denoiser")
        given = call.x if served.engine.looks_at_input else None
        prediction = served.serve(Arrival(WHOLE, given, signals), evaluate)
        served.leave()
        if own and prediction is own[0]:
            return own[1]
        return served.kept(WHOLE).fill(prediction)

"""The denoiser's output together with modules inside, ``"output+attention+mlp"``: a call is skipped, or parts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cachepolicies.base.outputs import form_of, tensor_of
from cachepolicies.contracts.signal import Signal
from cachepolicies.engine.call import WHOLE, Arrival
from cachepolicies.engine.invocation import Invocation
from cachepolicies.sites._places import Underway
from cachepolicies.sites.modules import ModulesSite


class OutputAndModulesSite(ModulesSite):
    """The output of the denoiser as the first place, named ``""``, and around it the modules of another site.

    Where the output is reused nothing runs, and no other place is reached. A policy has to decide place by place to
    gain from it: with one decision a call, modules are computed wherever the call is.
    """

    def __init__(self, site: ModulesSite, network: nn.Module, name: str, signals: Mapping[str, Signal]) -> None:
        """Put the output around a site.

        Args:
            site: of modules of the network.
            network: that they are in.
            name: of this site.
            signals: read from the latent and t, by name.
        """
        super().__init__(name, network, site.modules, signals, kinds=site.kinds, find=site.find)

    @property
    def places(self) -> tuple[str, ...]:
        """``""`` for the output, then the names of the modules."""
        return (WHOLE, *super().places)

    @property
    def replaces_evaluations(self) -> bool:
        """Yes, at the output: a substitute may correct what the call gave, and no module inside."""
        return True

    def run(self, now: Underway, invocation: Invocation) -> Any:
        """Serve the output: run the denoiser with the gates at its modules, or return what stands in."""
        served, own = now.served, list[Any]()
        now.reached.add(WHOLE)

        def evaluate(rows: Sequence[int] | None, audit: bool) -> Tensor:
            before, now.aside = now.work, audit
            returned = invocation.run(None)
            now.aside = False
            now.note_work(WHOLE, before)
            prediction = tensor_of(returned)
            if not audit:
                served.keep(WHOLE, form_of(returned))
                own[:] = prediction, returned
            return prediction

        given = served.call.x if served.engine.looks_at_input else None
        prediction = served.serve(Arrival(WHOLE, given, self.read_signals(now, WHOLE)), evaluate)
        if own and prediction is own[0]:
            return own[1]
        return served.kept(WHOLE).fill(prediction)

"""Any one submodule as the site: what it returns is remembered, and handed out again in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from attrs import field, frozen
from torch import nn

from cachepolicies.base.errors import RunError
from cachepolicies.base.settings import a_name
from cachepolicies.contracts.adapter import submodule
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal
from cachepolicies.contracts.site import Site
from cachepolicies.engine.call import WHOLE, Arrival
from cachepolicies.sites._gate import Handler
from cachepolicies.sites._graphs import GateOfSite, Resume
from cachepolicies.sites._inside import InsideSite
from cachepolicies.sites.blocks import refuse_frozen_graphs
from cachepolicies.sites.modules import OutputTensors, first_tensor
from cachepolicies.sites.signals import outside_signals, read_signal


@frozen
class Submodule(Site):
    """Cuts at the output of one module.

    Attributes:
        path: of the module, as ``named_modules`` spells it.
    """

    name: ClassVar[str] = "module"

    path: str = field(validator=a_name)

    def resolve(self, setup: Setup) -> SubmoduleSite:
        """Return the site on the network.

        Raises:
            NeedsError: there is no network.
            SettingsError: the network has no module at this path; or it runs inside one graph.
        """
        network = setup.network_for(self.path)
        refuse_frozen_graphs(network)
        return SubmoduleSite(network, self.path, outside_signals(setup), wrapped=setup.model is not network)


class SubmoduleSite(InsideSite):
    """The output of one module of a network."""

    def __init__(
        self, network: nn.Module, path: str, signals: Mapping[str, Signal] | None = None, *, wrapped: bool = True
    ) -> None:
        """Find the module.

        Args:
            network: that has it.
            path: of the module.
            signals: read from the latent and t, by name.
            wrapped: whether something around the network may call it on the batch several times over.

        Raises:
            SettingsError: the network has no module at this path.
        """
        super().__init__(network, path, wrapped=wrapped)
        self._signals = dict(signals or {})
        self._gates: dict[nn.Module, Handler] = {submodule(network, path, "site"): _Around(self)}

    @property
    def signals(self) -> frozenset[str]:
        """Those that need nothing from inside the model."""
        return frozenset(self._signals)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The module."""
        return {WHOLE: submodule(self.network, self.name, "site")}

    def twin(self) -> SubmoduleSite:
        """Return the same site for another thread."""
        return SubmoduleSite(self.network, self.name, self._signals, wrapped=self._wrapped)

    def handlers(self, signals: frozenset[str]) -> Mapping[nn.Module, Handler]:
        """Return the gate of the module."""
        return self._gates

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note that the module is called, and let the engine decide."""
        served = self.asking
        signals, given = {}, None
        if served is not None:
            for wanted in served.wanted_signals():
                value = self._signals[wanted].read(self.signal_input())
                signals[wanted] = read_signal(wanted, value, self.rows, self.name)
            if served.engine.looks_at_input:
                given = first_tensor(args, kwargs, self.rows, self.name)
        self.arrive(Arrival(WHOLE, given, signals))

    def capture(self, output: Any) -> None:
        """Take what the module returned."""
        form, packed = OutputTensors.taken(output, self.rows, self.name)
        for copies, *_ in form.shapes:
            self.check_order(copies, f"the output of {self.name!r}", known=False)
        self.keep(form)
        self.leave(packed)

    def replaced(self) -> Any:
        """Return what the module would have returned."""
        form = self.kept()
        if not isinstance(form, OutputTensors):
            raise RunError(f"site {self.name!r}: nothing of it has been evaluated yet")
        output = form.filled(self.replacement, self.rows)
        self.leave(None)
        return output


class _Around(GateOfSite):
    """The gate of the module."""

    def __init__(self, site: SubmoduleSite) -> None:
        super().__init__(site)

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the engine decide, and carry it out."""
        self.site.enter(args, kwargs)
        if self.site.replacing:
            return self.site.replaced()
        output = resume(proceed)(*args, **kwargs)
        self.site.capture(output)
        return output

"""Everything of a U-Net below one of its skip connections as the site.

DeepCache (Ma et al., arXiv 2312.00858) cuts there: at a reuse only the layers above the branch run, on the way down and
on the way up, and what the way up gets from below is what it got at the last refresh.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import field, frozen
from attrs.validators import ge, instance_of
from torch import nn

from cachepolicies.base.errors import RunError, SettingsError
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal
from cachepolicies.contracts.site import Site
from cachepolicies.engine.call import WHOLE, Arrival
from cachepolicies.sites._gate import Handler
from cachepolicies.sites._graphs import GateOfSite, Resume
from cachepolicies.sites._inside import InsideSite
from cachepolicies.sites._rows import replace_tensors, tensors_in
from cachepolicies.sites._whereabouts import Whereabouts
from cachepolicies.sites.blocks import refuse_frozen_graphs
from cachepolicies.sites.modules import OutputTensors
from cachepolicies.sites.signals import outside_signals, read_signal

_LAYER = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")
"""The lists of a block that have an entry for each of its layers, in the order in which a layer runs them."""


_UNLIKE = re.compile(r"K[A-Z]|Skip|AttnSkip|.*1D")
"""Blocks that hand on a second stream (NCSN++), or one skip connection a block."""


@frozen(eq=False)
class Below:
    """What lies below a skip connection.

    Attributes:
        modules: that are not run at a reuse, by path, in the order in which they run. Of a block that is below it as a
            whole, the block; the last one returns what the way up gets from below.
    """

    modules: Mapping[str, nn.Module]


def below_branch(network: nn.Module, branch: int) -> Below:
    """Return what lies below a skip connection of a U-Net.

    Args:
        network: the U-Net, built like those of diffusers: ``down_blocks``, ``mid_block`` and ``up_blocks``.
        branch: number of the connection, from the top: 0 is that of the first convolution, 1 that of the first layer.
            Where a block has two layers and a downsampler, as in Stable Diffusion, three belong to each.

    Raises:
        SettingsError: the network is built otherwise, or has no such connection.
    """
    kind = type(network).__name__
    down, mid, up = (getattr(network, name, None) for name in ("down_blocks", "mid_block", "up_blocks"))
    if isinstance(down, nn.ModuleList) and isinstance(up, nn.ModuleList) and mid is None:
        raise SettingsError(f"site 'skip-branch': this {kind} has no middle block; use site='output'")
    if not isinstance(down, nn.ModuleList) or not isinstance(mid, nn.Module) or not isinstance(up, nn.ModuleList):
        raise SettingsError(
            f"site 'skip-branch' cuts U-Nets with down_blocks, mid_block and up_blocks, and {kind} is none; use "
            "site='output', or name a module"
        )
    for path, block in (*down.named_children(), *up.named_children()):
        if _UNLIKE.match(type(block).__name__):
            raise SettingsError(
                f"site 'skip-branch': block {path} of {kind} is a {type(block).__name__}, which passes its skip "
                "connections on in a way of its own; use site='output' or site='blocks'"
            )
    layers = [_layers(block, f"up_blocks.{at}", kind) for at, block in enumerate(up)]
    for at, block in enumerate(down):
        put = len(_layers(block, f"down_blocks.{at}", kind))
        taken = len(layers[len(up) - 1 - at]) if at < len(up) else 0
        if taken != put + 1:
            raise SettingsError(
                f"site 'skip-branch': down_blocks.{at} of {kind} has {put} layers and the block that mirrors it "
                f"{taken}, where each layer on the way up takes one skip connection; use site='output' or "
                "site='blocks'"
            )
    at, count = 0, branch
    while at < len(down) and count >= len(layers[len(up) - 1 - at]):
        count -= len(layers[len(up) - 1 - at])
        at += 1
    if at >= len(down):
        total = sum(len(each) for each in layers)
        raise SettingsError(f"site 'skip-branch': branch is {branch}, and {kind} has {total}, from 0")
    found: dict[str, nn.Module] = {}
    if count == 0:
        found[f"down_blocks.{at}"] = down[at]
    else:
        inside = _layers(down[at], f"down_blocks.{at}", kind)
        for layer in inside[count:]:
            found.update(layer)
        for number, module in enumerate(getattr(down[at], "downsamplers", None) or ()):
            found[f"down_blocks.{at}.downsamplers.{number}"] = module
    found.update({f"down_blocks.{i}": down[i] for i in range(at + 1, len(down))})
    found["mid_block"] = mid
    mirrored = len(up) - 1 - at
    found.update({f"up_blocks.{i}": up[i] for i in range(mirrored)})
    for layer in layers[mirrored][: len(layers[mirrored]) - 1 - count]:
        found.update(layer)
    return Below(found)


def _layers(block: nn.Module, path: str, kind: str) -> list[dict[str, nn.Module]]:
    """Return the modules of every layer of a block, by path, in the order in which they run."""
    lists = {name: each for name in _LAYER if isinstance(each := getattr(block, name, None), nn.ModuleList)}
    count = len(lists.get("resnets", ()))
    if not count:
        raise SettingsError(f"site 'skip-branch': {path} of {kind}, a {type(block).__name__}, has no list of resnets")
    return [
        {f"{path}.{name}.{at}": each[at] for name, each in lists.items() if len(each) == count} for at in range(count)
    ]


@frozen
class SkipBranch(Site):
    """Cuts a U-Net below one of its skip connections.

    Attributes:
        branch: number of the connection, 0 is the topmost; the larger, the more runs at a reuse. See `below_branch`.
    """

    name: ClassVar[str] = "skip-branch"

    branch: int = field(default=0, validator=[instance_of(int), ge(0)])

    def resolve(self, setup: Setup) -> SkipBranchSite:
        """Return the site on the network.

        Raises:
            NeedsError: there is no network.
            SettingsError: it is no U-Net with such a connection; or it runs inside one graph.
        """
        network = setup.network_for(self.name)
        refuse_frozen_graphs(network)
        below_branch(network, self.branch)
        return SkipBranchSite(network, self.branch, outside_signals(setup), wrapped=setup.model is not network)


class SkipBranchSite(InsideSite):
    """What the way up gets from below a skip connection."""

    def __init__(
        self, network: nn.Module, branch: int, signals: Mapping[str, Signal] | None = None, *, wrapped: bool = True
    ) -> None:
        """Find the modules.

        Args:
            network: the U-Net.
            branch: see `below_branch`.
            signals: read from the latent and t, by name.
            wrapped: whether something around the network may call it on the batch several times over.

        Raises:
            SettingsError: it is no U-Net with such a connection.
        """
        super().__init__(network, SkipBranch.name, wrapped=wrapped, cut=str(branch))
        self.branch = branch
        self._signals = dict(signals or {})
        self._forms: dict[str, OutputTensors] = {}
        self._resolve()

    def _resolve(self) -> None:
        """Build the gates for the modules that the network has now."""
        below = below_branch(self.network, self.branch).modules
        self._whereabouts = Whereabouts(self.network, below)
        first, last = next(iter(below)), list(below)[-1]
        self._gates: dict[nn.Module, Handler] = {
            module: _Around(self, path, first=path == first, last=path == last) for path, module in below.items()
        }
        self._last = below[last]

    @property
    def signals(self) -> frozenset[str]:
        """Those that need nothing from inside the model."""
        return frozenset(self._signals)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The last module below the branch."""
        return {WHOLE: self._last}

    def twin(self) -> SkipBranchSite:
        """Return the same site for another thread."""
        return SkipBranchSite(self.network, self.branch, self._signals, wrapped=self._wrapped)

    def handlers(self, signals: frozenset[str]) -> Mapping[nn.Module, Handler]:
        """Return the gates of the modules below the branch."""
        if not self._whereabouts.unchanged():
            self._resolve()
        return self._gates

    # -- for the gates --------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Let the engine decide."""
        served, signals = self.asking, {}
        if served is not None:
            for wanted in served.wanted_signals():
                value = self._signals[wanted].read(self.signal_input())
                signals[wanted] = read_signal(wanted, value, self.rows, self.name)
        self._forms = {}
        self.arrive(Arrival(WHOLE, None, signals, read_only=False))

    def note(self, path: str, output: Any, *, last: bool) -> None:
        """Note the form of what a module returned; of the last one, take what it is."""
        form, packed = OutputTensors.taken(output, self.rows, path)
        self._forms[path] = form
        if last:
            for copies, *_ in form.shapes:
                self.check_order(copies, f"the output of {path!r}", known=False)
            self.keep(self._forms)
            self.leave(packed)

    def instead(self, path: str, *, last: bool) -> Any:
        """Return what a module would have returned: of the last one what is remembered, of others the form alone."""
        forms = self.kept()
        if not isinstance(forms, dict):
            raise RunError(f"site {self.name!r}: nothing below the branch has been evaluated yet")
        form: OutputTensors = forms[path]
        if not last:
            return blank(form, self.rows)
        output = form.filled(self.replacement, self.rows)
        self.leave(None)
        return output


def blank(form: OutputTensors, rows: int) -> Any:
    """Return an output of a form with zeros in it, for so many rows: a ControlNet's features may be added to it."""
    empty = tensors_in(form.form)
    zeros = [
        torch.zeros((copies * rows, *rest), dtype=like.dtype, device=like.device)
        for like, (copies, *rest) in zip(empty, form.shapes, strict=True)
    ]
    return replace_tensors(form.form, zeros)


class _Around(GateOfSite):
    """The gate of one module below the branch."""

    def __init__(self, site: SkipBranchSite, path: str, *, first: bool, last: bool) -> None:
        super().__init__(site)
        self.path, self.first, self.last = path, first, last

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Let the engine decide at the first, and carry it out."""
        site: SkipBranchSite = self.site
        if self.first:
            site.enter()
        if site.replacing:
            return site.instead(self.path, last=self.last)
        output = resume(proceed)(*args, **kwargs)
        site.note(self.path, output, last=self.last)
        return output

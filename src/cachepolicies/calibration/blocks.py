"""What MagCache and TeaCache need of a trajectory: sizes of the blocks' residual, changes of signals and output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.adapters.find import adapter_of, network_of
from cachepolicies.base.errors import NeedsError, ProfileError
from cachepolicies.base.units import difference
from cachepolicies.calibration.fit import fit_polynomial, magnitude_ratios, mean_norm_ratio
from cachepolicies.profiles.schema import Polynomial
from cachepolicies.sites.probe import BlocksProbe, Observation, token_norms

RATIO, SIGNAL, OUTPUT = "magnitude_ratio", "signal_change", "output_change"
DEGREE = 4
"""Of TeaCache's polynomials."""


def probe_of(model: Callable[..., Any], wanted: bool | None) -> BlocksProbe | None:
    """Return a probe of the model's block stack.

    Args:
        model: the denoiser.
        wanted: ``True``: there has to be one; ``None``: if the network and its stack are known; ``False``: none.

    Raises:
        NeedsError: one is wanted, and the model is no network with a known stack.
    """
    network = None if wanted is False else network_of(model)
    if network is None:
        if wanted:
            raise NeedsError(
                f"blocks=True, but {type(model).__name__} is no torch.nn.Module and does not name one by an attribute "
                "`network`"
            )
        return None
    try:
        adapter = adapter_of(network)
    except NeedsError:  # what is looked for if it is there: the caller is told by what the profile holds
        if wanted:
            raise
        return None
    return BlocksProbe(network, adapter)


class BlockWatch:
    """Follows one batch along its trajectory, step after step; holds one step's residual norms and signals."""

    def __init__(self, probe: BlocksProbe, first: int) -> None:
        self._probe = probe
        self._first = first
        self._before: tuple[list[Tensor], Sequence[Observation], Tensor] | None = None
        self._ratios: list[NDArray[np.float64]] = []
        self._signals: dict[str, list[NDArray[np.float64]]] = {name: [] for name in probe.signals}
        self._outputs: list[NDArray[np.float64]] = []

    def evaluate(self, denoiser: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """Evaluate the denoiser at the first evaluation of a step, and compare with the step before.

        Raises:
            ProfileError: the network is called another number of times than before, or something has no relative
                change.
        """
        rows = x.shape[0]
        output: Tensor
        output, passes = self._probe.observe(lambda: denoiser(x, t), rows)
        norms = [torch.cat([token_norms(r, rows) for r in seen.residuals], dim=1) for seen in passes]
        signals = [Observation((), seen.signals) for seen in passes]
        if self._before is not None:
            self._compare(norms, signals, output, float(t.reshape(-1)[0]))
        self._before = norms, signals, output.clone()
        return output

    def tables(self) -> dict[str, NDArray[np.float64]]:
        """Return the tables of the batch: ratios ``(N, B)``, changes ``(N - 1, B)``."""
        rows = 0 if self._before is None else self._before[2].shape[0]
        ratios = np.stack(self._ratios) if self._ratios else np.empty((0, rows))
        tables = {RATIO: magnitude_ratios(ratios)}
        if self._outputs:
            tables[OUTPUT] = np.stack(self._outputs)
            tables |= {f"{SIGNAL}.{name}": np.stack(changes) for name, changes in self._signals.items()}
        return tables

    def _compare(self, norms: list[Tensor], passes: Sequence[Observation], output: Tensor, t: float) -> None:
        norms_before, passes_before, output_before = self._before or ([], [], output)
        if len(norms) != len(norms_before):
            raise ProfileError(
                f"the network is called {len(norms)} times by the denoiser at t={t:g} and {len(norms_before)} times "
                "before; its residuals cannot be compared. Calibrate with guidance on throughout, or with blocks=False"
            )
        pairs = zip(norms, norms_before, strict=True)
        ratios = [mean_norm_ratio(now.cpu().numpy(), before.cpu().numpy()) for now, before in pairs]
        self._ratios.append(np.mean(ratios, axis=0))
        for name, changes in self._signals.items():
            seen = [
                self._relative(now.signals[name], before.signals[name], f"signal {name!r}", t)
                for now, before in zip(passes, passes_before, strict=True)
            ]
            changes.append(np.mean(seen, axis=0))
        self._outputs.append(self._relative(output, output_before, "the output", t))

    def _relative(self, now: Tensor, before: Tensor, what: str, t: float) -> NDArray[np.float64]:
        size = before.abs().flatten(1).double().mean(dim=1)
        change = difference(now, before).abs().flatten(1).double().mean(dim=1)
        if not bool((size > 0).all()):
            row = int((size <= 0).nonzero()[0])
            raise ProfileError(
                f"{what} of sample {self._first + row} is zero before t={t:g}, so that its change is relative to "
                "nothing; calibrate with blocks=False"
            )
        relative: NDArray[np.float64] = (change / size).cpu().numpy()
        return relative


def fitted(tables: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Polynomial], list[str]]:
    """Fit TeaCache's polynomial for every signal, where there are enough different points.

    Returns:
        Signal name to polynomial, and a note for every signal that could not be fitted.
    """
    polynomials, notes = {}, []
    for key, changes in tables.items():
        kind, _, signal = key.partition(".")
        if kind != SIGNAL:
            continue
        distinct = len(np.unique(changes))
        if distinct <= DEGREE:
            notes.append(f"no polynomial for {signal}: {distinct} different changes, {DEGREE + 1} are needed")
        else:
            polynomials[signal] = fit_polynomial(changes, tables[OUTPUT], DEGREE)
    return polynomials, notes

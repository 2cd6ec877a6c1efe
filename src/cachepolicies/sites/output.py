"""The denoiser's output as the site: works with any callable (SenCache, arXiv 2602.24208, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cachepolicies._engine import Engine
from cachepolicies._errors import RunError
from cachepolicies._output import OutputForm, form_of, tensor_of
from cachepolicies._run import Call
from cachepolicies.sites.base import Invocation


class OutputSite:
    """Cuts where the denoiser returns: a skipped evaluation runs nothing of it."""

    name = "output"
    signals: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._forms: dict[str, OutputForm] = {}

    def serve(self, engine: Engine, call: Call, invocation: Invocation) -> Any:
        """Serve one call; see `Site.serve`."""

        def evaluate(rows: Sequence[int] | None, audit: bool) -> Tensor:
            if rows is None and engine.slices:
                invocation.check_rows()
            output = invocation.run(rows)
            prediction, form = tensor_of(output), form_of(output)
            if engine.slices and form.extra_tensors:
                raise RunError(
                    "the denoiser returns further tensors beside its prediction, which cannot be merged row by row; "
                    "use per_sample=False"
                )
            if not audit:
                self._forms[call.branch] = form
            return prediction

        try:
            prediction = engine.call(call, evaluate)
        except BaseException:
            self._forms.clear()
            raise
        return self._forms[call.branch].fill(prediction)

    def reset(self) -> None:
        """Forget the last output's form."""
        self._forms.clear()

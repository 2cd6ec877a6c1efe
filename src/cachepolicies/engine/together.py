"""Whether the samples of a batch can decide apart: where it turns out that they cannot, they decide as one."""

from __future__ import annotations

from typing import Any

from attrs import define, evolve

from cachepolicies.base.errors import RowsUnknownError
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.engine.engine import ServedCall, enter
from cachepolicies.engine.invocation import Invocation


@define(eq=False)
class Together:
    """What is known of a denoiser's batches.

    Attributes:
        asked: whether the user said that samples decide for themselves; then it is an error where they cannot.
        found: whether they cannot.
    """

    asked: bool
    found: bool = False

    def serve(self, site: ResolvedSite, served: ServedCall, invocation: Invocation) -> tuple[ServedCall, Any]:
        """Serve a call at a site; where its rows cannot be told apart, the run begins again with one decision.

        Returns:
            The call as it was served in the end, and what the denoiser returns.

        Raises:
            RowsUnknownError: samples, or the copies of a batch, were to decide for themselves, and cannot.
            Exception: whatever the denoiser, the engine or the site raises.
        """
        try:
            return served, site.serve(served, invocation)
        except RowsUnknownError as unknown:
            if served.run.info.layout.apart:
                raise RowsUnknownError(
                    f"policy {served.engine.policy.name!r} decides for every guidance branch apart, whose rows are in "
                    f"one batch here, and rows cannot be told apart: {unknown}. That is no way out for this policy: it "
                    "takes the branches as separate calls"
                ) from unknown
            if self.asked or served.number:
                raise
            self.found = True
            why = str(unknown)
        request = served.request
        request.begin_again()
        served = enter(request, evolve(served.call, x=served.given, as_one=True))
        request.warn_once("as one", f"the samples of a batch decide as one here: {why}")
        return served, site.serve(served, invocation)

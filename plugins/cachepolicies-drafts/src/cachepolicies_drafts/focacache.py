"""FoCa (Zheng et al., arXiv 2508.16211) as a policy: every n-th step is computed, the others are forecast."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cachepolicies_drafts.foca import FoCa
from cachepolicies_drafts.interval import Interval


@frozen
class FoCaCache(Interval):
    """Compute the first steps and every n-th; forecast the residual of the whole stack between them.

    What is remembered is taken for the values of an ordinary differential equation along the steps, and `FoCa` goes on
    from them, its own forecasts among them, with a predictor and a corrector.

    It reads nothing but the number of the step. It cuts at ``"blocks"``, where cache-dit applies it; the paper
    forecasts what every layer returns, ``site="attention+mlp"``. ``foca`` stands in. It costs the memory of four
    residuals a branch. It helps where steps are small, so that what flows moves nearly on a line. What users run into:
    at long intervals forecasts overshoot, see ``slope`` of the substitute; and the first steps have to be computed,
    since it takes two evaluations to forecast.

    The authors report 5.50x on FLUX, 6.45x on HunyuanVideo, 3.17x on Inf-DiT and 4.53x on DiT; cache-dit has no
    settings of its own for it. The interval here is a middle one of those that such methods are published with, 3 to 7
    at 50 steps.

    Attributes:
        every: n; 1 computes everything.
        first: steps, from the first, that are computed throughout.
        last: steps at the end that are computed throughout.
    """

    name: ClassVar[str] = "focacache"
    site: ClassVar[str] = "blocks"
    substitute: ClassVar[FoCa] = FoCa()

"""FreqCa (Liu et al., arXiv 2510.08669): every n-th step is computed; of the others, each band is made up by itself."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cachepolicies.substitutes import Hermite, Hold
from cachepolicies_drafts.bands import Bands
from cachepolicies_drafts.interval import Interval


@frozen
class FreqCa(Interval):
    """Compute the first steps and every n-th; between them hold the low frequencies and forecast the high ones.

    What is remembered is the residual of the whole stack, one tensor a branch, which the paper calls the cumulative
    residual feature. Its low frequencies over the grid of the tokens hardly change but jump, and are held; the high
    ones change but smoothly, and are continued by Hermite polynomials of second order.

    It reads nothing but the number of the step. It cuts at ``"blocks"``; ``bands:low=hold,high=hermite`` stands in, and
    any two substitutes can, ``substitute="bands:low=hold,high=quadratic"`` say: through three evaluations the
    polynomial of second order is that one whatever it is written in, and ``hermite`` is the damped one of HiCache. It
    costs the memory of three residuals a branch, and a Fourier transform and its inverse at each reuse. It helps at
    long intervals, where a forecast of everything goes astray. What users run into: the grid of the tokens has to be
    known, and must be all of the stream; images given beside the one that is drawn, as FLUX Kontext's, are tokens
    beyond it.

    What else they run into: on small grids the low band is most of what changes, and holding it costs more than the
    forecast of the others gains; on the video transformer that comes with cachepolicies it does no better than hold.

    The authors report 6 to 7 times the speed on FLUX.1-dev, FLUX.1-Kontext-dev, Qwen-Image and Qwen-Image-Edit, with
    less than 2 % loss in quality. The interval and the cut between the bands here are not theirs.

    Attributes:
        every: n; 1 computes everything.
        first: steps, from the first, that are computed throughout; three make the forecast one of second order.
        last: steps at the end that are computed throughout.
    """

    name: ClassVar[str] = "freqca"
    site: ClassVar[str] = "blocks"
    substitute: ClassVar[Bands] = Bands(low=Hold(), high=Hermite())

"""Why a place is evaluated or held, for methods whose steps are set beforehand."""

from cachepolicies import Reason


class Why(Reason):
    """Why a place is evaluated or held."""

    KEY = "a step at which it is computed"
    HELD = "a step between two of these"
    OUTSIDE = "outside of the window in which it may be held"
    ALWAYS = "a place that is always computed"

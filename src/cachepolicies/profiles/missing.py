"""The message for who needs a profile and was given none."""

from __future__ import annotations

from collections.abc import Iterable

from cachepolicies.base.errors import NeedsError
from cachepolicies.base.models import model_class_name
from cachepolicies.profiles.load import shipped_for

_MOST_NAMED = 6


def profile_is_missing(policy: str, wanted: Iterable[str], model: object = None) -> NeedsError:
    """Return the error of a policy that needs a profile where none was given; it says what would work.

    Args:
        policy: its name.
        wanted: names of the curves and tables that it reads.
        model: the denoiser, whose class is looked for among the shipped profiles; ``None`` where there is none.
    """
    needed = ", ".join(sorted(wanted))
    return NeedsError(
        f"policy {policy!r} needs a profile with {needed}, and none was given. {_what_is_there(model)}Without one: "
        "leave the policy out, and the first run is learned from; or policy='uniform' with a budget. To measure one: "
        "`cachepolicies calibrate MODULE:FUNCTION --out my-profile.json` or cachepolicies.calibrate(model, scheduler, "
        'samples), then profile="my-profile.json"'
    )


def _what_is_there(model: object) -> str:
    if model is None:
        return ""
    kind = model_class_name(model)
    found = shipped_for(kind)
    if not found:
        return f"No profile of {kind} is shipped (`cachepolicies profiles` lists them). "
    more = ", ..." if len(found) > _MOST_NAMED else ""
    return f"Shipped for {kind}: {', '.join(found[:_MOST_NAMED])}{more}. "

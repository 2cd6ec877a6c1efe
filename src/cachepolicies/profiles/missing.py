"""The message for who needs a profile and was given none."""

from __future__ import annotations

from collections.abc import Iterable

from cachepolicies.base.errors import NeedsError


def profile_is_missing(policy: str, wanted: Iterable[str]) -> NeedsError:
    """Return the error of a policy that needs a profile where none was given.

    Args:
        policy: its name.
        wanted: names of the curves and tables that it reads.
    """
    return NeedsError(
        f"policy {policy!r} needs a profile with {', '.join(sorted(wanted))}, and none was given. Measure one with "
        "`cachepolicies calibrate MODULE:FUNCTION --out my-profile.json` or cachepolicies.calibrate(model, "
        'scheduler, samples), then pass profile="my-profile.json"; `cachepolicies profiles` lists those shipped'
    )

"""A profile as fewer of its samples would have given it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from cachepolicies.base.errors import SettingsError
from cachepolicies.profiles.measured import Profile
from cachepolicies.profiles.record import SQUARE_TABLES


def of_samples(profile: Profile, chosen: Sequence[int]) -> Profile:
    """Return what planning reads of a profile, of some of its calibration samples only.

    Args:
        profile: what calibration measured.
        chosen: indices of samples, at least one, none twice.

    Returns:
        The profile with the tables ``displacement`` and ``change`` and with its curves; what was fitted to all samples,
        and the trials, are left out.

    Raises:
        SettingsError: no sample is chosen, one is chosen twice, or there is no such sample.
    """
    if not chosen or len({*chosen}) != len(chosen) or not {*chosen} <= {*range(profile.samples)}:
        raise SettingsError(
            f"samples {list(chosen)} of profile {profile.name!r}: give different indices from 0 to "
            f"{profile.samples - 1}, at least one"
        )
    kept = list(chosen)
    curves = {
        name: curve if curve.values.shape[1] == 1 else attrs.evolve(curve, values=curve.values[:, kept])
        for name, curve in profile.curves.items()
    }
    return attrs.evolve(
        profile,
        samples=len(kept),
        seeds=tuple(profile.seeds[i] for i in kept) if profile.seeds else (),
        tables={name: table[..., kept] for name, table in profile.tables.items() if name in SQUARE_TABLES},
        curves=curves,
        polynomials={},
        trials=(),
    )

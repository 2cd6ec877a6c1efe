"""What every score promises, as checks: `check_score`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cachepolicies.contracts.policy import Needs
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.score import Score, ScoreSettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.profiles.schema import Profile
from cachepolicies.registry.load import scores
from cachepolicies.registry.registry import Registry
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.substitutes.resolve import as_substitute
from cachepolicies.testing import strategies as made
from cachepolicies.testing.bench import only_declared
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import copied, difference_between
from cachepolicies.testing.denoisers import HORIZON, calibrated_profile
from cachepolicies.testing.settings import SETTINGS


@frozen
class Reuse:
    """A reuse to be judged.

    Attributes:
        refreshes: noise levels of the last refreshes, newest first.
        t: where the output would be reused.
        displacement: how far the latent has moved since the newest refresh.
    """

    refreshes: tuple[float, ...]
    t: float
    displacement: float


@frozen(eq=False)
class ScoreCase:
    """A score with what it needs; see `check_score`."""

    settings: ScoreSettings
    profile: Profile | None
    scheduler: Scheduler | None
    substitute: Substitute
    start: float
    registry: Registry[Any] = field(factory=scores)

    def setup(self, profile: Profile | None = None) -> Setup:
        """Return what the score is resolved with."""
        setup = Setup(profile or self.profile, scheduler=self.scheduler)
        return setup.with_parts(substitute=as_substitute(self.substitute.resolve(setup)))

    def score(self, profile: Profile | None = None) -> Score:
        """Return the score, resolved, in memory of its own."""
        resolved: object = copied(self.settings).resolve(self.setup(profile))
        expect(isinstance(resolved, Score), f"it resolves to {resolved!r}, which is no Score")
        assert isinstance(resolved, Score)
        return resolved


def _reuses(case: ScoreCase) -> SearchStrategy[Reuse]:
    order: object = case.score().order
    longest = 1 + (order if isinstance(order, int) and order >= 0 else 0)
    displacements = st.sampled_from((0.1, 0.0, 1e-3, 2.0, 30.0))
    histories = made.histories(longest=longest, start=case.start, max_rows=1)
    return st.builds(lambda one, far: Reuse(one.levels[0], one.now, far), histories, displacements)


SCORE: Suite[ScoreCase] = Suite("score", SETTINGS)


@SCORE.property()
def declares_soundly(case: ScoreCase) -> None:
    """Its order is an integer >= 0, its growth above 0, its needs are Needs."""
    one = case.score()
    order: object = one.order
    expect(type(order) is int and order >= 0, f"order is {order!r}")
    expect(0 < one.growth < math.inf, f"growth is {one.growth!r}")
    expect(isinstance(one.needs, Needs), f"needs is {one.needs!r}")


@SCORE.property(examples=12, reuse=_reuses)
def is_finite_and_not_negative(case: ScoreCase, reuse: Reuse) -> None:
    """It is a finite number >= 0, however short the history is and however far the latent has moved."""
    value = case.score().at(reuse.refreshes, reuse.t, reuse.displacement)
    expect(isinstance(value, (int, float)) and not isinstance(value, bool), f"it is {value!r}")
    expect(0 <= value < math.inf, f"it is {value!r}")


@SCORE.property(reuse=_reuses, other=_reuses)
def is_the_same_again(case: ScoreCase, reuse: Reuse, other: Reuse) -> None:
    """The same reuse has the same score, whatever was asked in between."""
    one = case.score()
    first = one.at(reuse.refreshes, reuse.t, reuse.displacement)
    one.at(other.refreshes, other.t, other.displacement)
    same(difference_between(first, one.at(reuse.refreshes, reuse.t, reuse.displacement)), "asked again")


@SCORE.property(examples=5, reuse=_reuses)
def works_with_what_it_declares(case: ScoreCase, reuse: Reuse) -> None:
    """It is the same from a profile that has the curves and tables that it declares, and no others."""
    full = case.score()
    if not full.needs.curves | full.needs.tables:
        full.at(reuse.refreshes, reuse.t, reuse.displacement)
        return
    bare = case.score(only_declared(case.profile, full.needs))
    one, other = (each.at(reuse.refreshes, reuse.t, reuse.displacement) for each in (full, bare))
    same(difference_between(one, other), "with what it declares, and with everything")


def score_checks(
    score: ScoreSettings,
    *,
    profile: Profile | None = None,
    scheduler: Scheduler | str | None = None,
    substitute: Substitute | str = "hold",
    start: float = HORIZON,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a score, for `parametrize_with_checks`; takes what `check_score` takes."""
    case = ScoreCase(
        score,
        calibrated_profile() if profile is None else profile,
        None if scheduler is None else as_scheduler(scheduler),
        as_substitute(substitute),
        start,
    )
    return SCORE.checks(case, score, label or str(getattr(score, "name", score)), expected_failures)


def check_score(score: ScoreSettings, **options: Any) -> None:
    """Check that a score keeps what `cachepolicies.Score` promises.

    ```python
    check_score(MyScore())
    ```

    Args:
        score: the score, or settings that resolve to one, as a user would write it.
        **options: what it needs, where it needs more. ``profile=``: else one that was calibrated on a mixture of
            Gaussians, with every curve and table that calibration knows of. ``scheduler=`` and ``substitute=``: in use.
            ``start=``: the highest t, else 1000. ``label=``: short name for ids. ``expected_failures=``: name of a
            property to the reason why it does not hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(score_checks(score, **options))

"""Whether a plan was made for what is in use: its steps and tolerances are wrong for another substitute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.schedulers.resolve import scheduler_of
from cachepolicies.substitutes.resolve import same_substitute, substitute_on

if TYPE_CHECKING:
    from cachepolicies.planning.plan_record import Plan
    from cachepolicies.profiles.schema import Profile


def check_planned_for(plan: Plan, setup: Setup, subject: str) -> None:
    """Check that a plan was made for the substitute in use, and for the class of model that the profile is about.

    Two substitutes are the same if they weigh what is remembered in the same way on the plan's timesteps, whatever
    their guards; so that one that follows the scheduler's time is told from one that extrapolates in t.

    Args:
        plan: the plan.
        setup: what is in use.
        subject: of the message.

    Raises:
        SettingsError: it was made for something else.
        UnknownNameError: its substitute is not registered.
    """
    profile, used = setup.profile, setup.substitute
    if profile is not None and profile.model.class_name != plan.source.model_class:
        raise SettingsError(
            f"{subject}: the plan was made for a {plan.source.model_class}, and profile {profile.name!r} is of a "
            f"{profile.model.class_name}; plan with the profile in use"
        )
    if plan.substitute.partition(":")[0] != used.name or not same_substitute(
        _substitute_of(plan, profile), used, plan.timesteps
    ):
        raise SettingsError(
            f"{subject}: the plan was made for the substitute {plan.substitute!r}, and {used!r} is in use; give "
            f"substitute={plan.substitute!r} and the scheduler of the plan, or make a plan for the one in use"
        )


def _substitute_of(plan: Plan, profile: Profile | None) -> Substitute:
    info = plan.source.scheduler
    return substitute_on(plan.substitute, None if info is None else scheduler_of(info), profile)

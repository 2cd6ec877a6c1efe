"""The contract of a policy: *when* may an evaluation be skipped?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from attrs import field, frozen
from torch import Tensor

from cachepolicies._step import RunInfo, Step

if TYPE_CHECKING:
    from cachepolicies._setup import Setup
    from cachepolicies.profiles.schema import Profile


def _names(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


@frozen
class Needs:
    """What a policy cannot work without; checked at set-up, so that nothing is missing in the middle of a run.

    Attributes:
        curves: names of the profile's curves over t that it reads, for example ``"alpha_x"``.
        tables: names of the profile's tables that it reads, for example ``"displacement"``.
        run_length: whether it must know the timesteps of the run beforehand.
        signals: names of values from inside the model; the site at the denoiser's output supplies none.
    """

    curves: frozenset[str] = field(default=(), converter=_names)
    tables: frozenset[str] = field(default=(), converter=_names)
    run_length: bool = False
    signals: frozenset[str] = field(default=(), converter=_names)


@frozen
class Decision:
    """What to do at one step, one entry for each deciding sample (one for the whole batch if ``per_sample=False``).

    Attributes:
        reuse: ``True`` where the substitute stands in for the evaluation.
        reason: why, one short phrase each.
        score: the policy's estimate, or ``None`` if it has none; ``nan`` where there is nothing to compare with. Most
            often the predicted RMS change of the output since the last refresh.
        tolerance: what the score was compared with, or ``None``.
        score_is_change: whether the score is such an RMS change, which an audit can be compared with; ``False`` for an
            estimate in units of its own.
    """

    reuse: tuple[bool, ...]
    reason: tuple[str, ...]
    score: tuple[float, ...] | None = None
    tolerance: tuple[float, ...] | None = None
    score_is_change: bool = True

    @classmethod
    def same(cls, reuse: bool, reason: str, decisions: int) -> Decision:
        """Return one decision for all ``decisions`` samples, without a score."""
        return cls((reuse,) * decisions, (reason,) * decisions)


@runtime_checkable
class CachePolicy(Protocol):
    """Decides when to reuse. Settings are frozen; whatever changes during a run is in the state.

    The engine calls ``start`` at the beginning of a run, then for every evaluation that the sampler asks for
    ``decide`` followed by ``observe``. It owns the state and passes it in and out: a policy keeps nothing to itself,
    so one policy object serves any number of denoisers, and a run that broke off leaves nothing behind. With shared
    branches there is one state, fed by the branch that is called first at each t; with independent branches each has
    its own.
    """

    name: ClassVar[str]
    """Short name, shown in traces and errors."""

    @property
    def needs(self) -> Needs:
        """What must be provided for these settings."""
        ...

    @property
    def reuses(self) -> bool:
        """Whether these settings can ever reuse; if not, the engine keeps no cache."""
        ...

    def start(self, run: RunInfo) -> Any:
        """Return the state of a new run.

        Args:
            run: what is known of the run before its first evaluation.

        Returns:
            The state, of any type; never changed in place.
        """
        ...

    def decide(self, step: Step, state: Any) -> Decision:
        """Decide what to do at ``step``. Has no side effects: calling it twice gives the same decision.

        Args:
            step: the evaluation that the sampler asks for.
            state: what ``start`` or the last ``observe`` returned.

        Returns:
            A decision with ``step.run.decisions`` entries. Where nothing is cached, or what is cached is not finite,
            the engine evaluates whatever the policy wants.
        """
        ...

    def observe(self, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        """Take note of what was done at ``step`` and return the next state.

        Args:
            step: the step that was decided on.
            decision: what was carried out, guards included; may evaluate where ``decide`` wanted to reuse.
            output: ``(B, ...)`` what the denoiser's caller receives, evaluated and substituted rows together; not to
                be changed or kept without copying.
            state: the state that ``decide`` saw.

        Returns:
            The next state.
        """
        ...


@runtime_checkable
class TakesFromProfile(Protocol):
    """A policy that leaves settings open for the profile to fill in; optional, beside `CachePolicy`."""

    def bind(self, profile: Profile | None) -> CachePolicy:
        """Return the policy with what it takes from the profile filled in; called once, at set-up.

        Settings that were given stay as they are. The returned policy's ``needs`` and ``reuses`` are final: they are
        read after this call only. Binding again changes nothing.

        Args:
            profile: what calibration measured or the authors published, or ``None`` if none was given.

        Raises:
            NeedsError: something is missing from both the settings and the profile; says what and how to get it.
            ProfileError: the profile's default settings are not valid for this policy.
        """
        ...


@runtime_checkable
class TakesFromSetup(Protocol):
    """A policy that depends on the substitute, the profile or the scheduler in use; optional, beside `CachePolicy`."""

    def suit(self, setup: Setup) -> CachePolicy:
        """Return the policy resolved for what it will work with; called once, at set-up, after ``bind``.

        The returned policy's ``needs`` and ``reuses`` are final: they are read after this call only. A policy that
        wraps another passes the call on.

        Args:
            setup: profile, substitute and scheduler.

        Raises:
            NeedsError: something is missing for these settings with this substitute; says what and how to get it.
            SettingsError: the settings were made for something else, for example for another substitute.
        """
        ...

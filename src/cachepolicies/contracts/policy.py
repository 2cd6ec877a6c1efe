"""The contract of a policy: *when* may an evaluation be skipped?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attrs import evolve, field, frozen
from torch import Tensor

from cachepolicies.contracts.declared import Contract
from cachepolicies.contracts.reasons import Reason
from cachepolicies.contracts.step import RunInfo, Step

if TYPE_CHECKING:
    from cachepolicies.contracts.setup import Setup
    from cachepolicies.contracts.site import Site
    from cachepolicies.contracts.substitute import Substitute
    from cachepolicies.profiles.schema import Profile

Grain: TypeAlias = Literal["call", "place"]
"""``"call"``: one decision for all places of a call; ``"place"``: one for each place."""


def _names(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


@frozen
class Needs:
    """What a policy cannot work without; checked at set-up, so that nothing is missing in the middle of a run.

    Attributes:
        curves: names of the profile's curves over t that it reads, for example ``"alpha_x"``.
        tables: names of the profile's tables that it reads, for example ``"displacement"``.
        run_length: whether it must know the timesteps of the run beforehand.
        signals: names of values from inside the model or about the call; see `cachepolicies.Signal`.
        input: whether it looks at ``step.input``, what goes into a place.
    """

    curves: frozenset[str] = field(default=(), converter=_names)
    tables: frozenset[str] = field(default=(), converter=_names)
    run_length: bool = False
    signals: frozenset[str] = field(default=(), converter=_names)
    input: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Return what either needs."""
        return Needs(
            self.curves | other.curves,
            self.tables | other.tables,
            self.run_length or other.run_length,
            self.signals | other.signals,
            self.input or other.input,
        )


@frozen
class Decision:
    """What to do at one step, one entry for each deciding sample (one for the whole batch if ``per_sample=False``).

    Attributes:
        reuse: ``True`` where the substitute stands in for the evaluation.
        reason: why, a member of a `Reason` enumeration each.
        score: the policy's estimate, or ``None`` if it has none; ``nan`` where there is nothing to compare with. Most
            often the predicted RMS change of the output since the last refresh.
        tolerance: what the score was compared with, or ``None``.
        score_is_change: whether the score is such an RMS change, which an audit can be compared with; ``False`` for an
            estimate in units of its own.
        verify: names of places at which what is reused is computed all the same, on what enters them now, and compared;
            ``""`` at a site with one place. See `CachePolicy.verify`. Where nothing is reused they count for nothing.
    """

    reuse: tuple[bool, ...]
    reason: tuple[Reason, ...]
    score: tuple[float, ...] | None = None
    tolerance: tuple[float, ...] | None = None
    score_is_change: bool = True
    verify: tuple[str, ...] = ()

    @classmethod
    def same(cls, reuse: bool, reason: Reason, decisions: int) -> Decision:
        """Return one decision for all ``decisions`` samples, without a score."""
        return cls((reuse,) * decisions, (reason,) * decisions)


class PolicySettings(Contract, declares=True):
    """What a user writes to choose a policy: frozen settings, some of which may be left open.

    A policy whose settings work as they are derives from `CachePolicy` and need not know of this.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, shown in traces and errors; a class attribute, ``name: ClassVar[str] = "mine"``."""

    @property
    def knob(self) -> str | None:
        """Name of the setting that a budget is solved for: the larger, the more is reused; ``None`` for none.

        A knob of the name ``"evaluations"`` is the number itself, and nothing is solved.
        """
        return None

    def with_knob(self, value: float) -> PolicySettings:
        """Return the settings with another value of the knob.

        Raises:
            SettingsError: the value is out of range.
        """
        if self.knob is None:
            raise TypeError(f"policy {self.name!r} names no knob")
        kind: Any = self
        changed: PolicySettings = evolve(kind, **{self.knob: value})
        return changed

    def for_budget(self, evaluations: int, num_steps: int) -> PolicySettings:
        """Return the settings with what was left open, and would limit reuse, giving way to a budget; as they are.

        Args:
            evaluations: of a run.
            num_steps: of it.
        """
        return self

    @property
    def substitute(self) -> str | Substitute | None:
        """What the method is published with, a substitute or its spec, taken where nobody names one; as usual ``None``.

        `hold` is then taken, or with a budget what is best.
        """
        return None

    @property
    def stand_in(self) -> str | Substitute | None:
        """The substitute that goes with the rule where nobody names one and a budget is met; ``None`` for any.

        That of ``substitute`` unless it says otherwise. A rule that looks at what flows on takes one that does not
        change evaluations.
        """
        return self.substitute

    @property
    def site(self) -> str | Site | None:
        """Where the rule is published to cut, a site or its spec, taken where nobody names one; ``None`` as usual."""
        return None

    def simulated(self, profile: Profile) -> Sequence[float] | None:
        """Return how many steps of each calibration run these settings evaluate, where the policy itself knows.

        ``None``, as unless it says otherwise: it is replayed on points that have the RMS distances of the profile.

        Args:
            profile: with the tables that were measured.

        Raises:
            NeedsError: a table is missing.
        """
        return None

    @abstractmethod
    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the policy that works in this set-up; called once, when the denoiser is set up.

        The settings stay as they are. What was left open is taken from the profile, else from defaults.

        Args:
            setup: profile, substitute, scheduler, model, adapter and site.

        Raises:
            NeedsError: something is missing from the settings and from the set-up; says what and how to get it.
            ProfileError: the profile's default settings are not valid for this policy.
            SettingsError: the settings were made for something else, for example for another substitute.
        """


class CachePolicy(PolicySettings, declares=True):
    """Decides when to reuse. Settings are frozen; whatever changes during a run is in the state.

    The engine calls ``start`` at the beginning of a run, then for every evaluation that the sampler asks for
    ``decide`` followed by ``observe``. It owns the state and passes it in and out: a policy keeps nothing to itself,
    so one policy object serves any number of denoisers, threads and runs, and a run that broke off leaves nothing
    behind. With shared branches there is one state, fed by the branch that is called first at each t; with independent
    branches each has its own. Only ``decide`` has to be written.
    """

    @property
    def needs(self) -> Needs:
        """What must be provided for these settings; nothing unless it says so."""
        return Needs()

    @property
    def reuses(self) -> bool:
        """Whether these settings can ever reuse; if not, the engine keeps no cache."""
        return True

    @property
    def grain(self) -> Grain:
        """Whether it decides once a call for all places of the site, or place by place; once a call by default.

        Most sites have one place, where both are the same. With ``"place"`` every place has a state of its own, from
        ``start``, and ``step.place`` says which one is decided on.
        """
        return "call"

    @property
    def by_branch(self) -> bool:
        """Whether it decides for every guidance branch apart, whatever ``branches=`` says; not by default.

        Every branch has a state of its own then, from ``start``. In a batch that is doubled for guidance each copy is a
        branch: there is one call and one state, but a decision for each copy of every sample, and ``step.branches``
        says whose each is. The site has to be able to evaluate some rows of a batch.
        """
        return False

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the policy that works in this set-up; the policy itself unless it says otherwise."""
        return self

    def start(self, run: RunInfo) -> Any:
        """Return the state of a new run; ``None`` unless it says otherwise.

        Args:
            run: what is known of the run before its first evaluation.

        Returns:
            The state, of any type; never changed in place.
        """
        return None

    @abstractmethod
    def decide(self, step: Step, state: Any) -> Decision:
        """Decide what to do at ``step``. Has no side effects: calling it twice gives the same decision.

        Args:
            step: the evaluation that the sampler asks for.
            state: what ``start`` or the last ``observe`` returned.

        Returns:
            A decision with ``step.run.decisions`` entries. Where nothing is cached, or what is cached is not finite,
            the engine evaluates whatever the policy wants.
        """

    def observe(self, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        """Take note of what was done at ``step`` and return the next state; the same one unless it says otherwise.

        Args:
            step: the step that was decided on.
            decision: what was carried out, guards included; may evaluate where ``decide`` wanted to reuse.
            output: ``(B, ...)`` what flows on from the place, evaluated and substituted rows together; not to be
                changed or kept without copying.
            state: the state that ``decide`` saw.

        Returns:
            The next state.
        """
        return state

    @property
    def observes_places(self) -> bool:
        """Whether `observe_place` is called: where the policy has one, and decides once a call."""
        return type(self).observe_place is not CachePolicy.observe_place

    def observe_place(self, step: Step, place: str, decision: Decision, output: Tensor, state: Any) -> Any:
        """Take note of what flowed at one place of the call, and return the next state; the same one by default.

        For a policy that decides once a call for several places. Called at every place that the call reaches, the first
        one included, after ``observe``; of several branches that share a decision, for the one that was called first.

        Args:
            step: the step that was decided on.
            place: name of the place.
            decision: what was carried out there.
            output: ``(B, ...)`` what flows on from the place; not to be changed or kept without copying.
            state: what ``observe``, or this for the place before, returned.

        Returns:
            The next state.
        """
        return state

    @property
    def verifies(self) -> bool:
        """Whether it may ask for places to be verified: where it has a `verify`."""
        return type(self).verify is not CachePolicy.verify

    def verify(self, step: Step, place: str, drafted: Tensor, computed: Tensor, state: Any) -> Any:
        """Compare what stood in at a place with what is computed there, and return the next state; the same by default.

        Called at the places that ``decision.verify`` names, after ``observe`` and `observe_place`, where something was
        reused; of several branches that share a decision, for the one that was called first. What was drafted flows on
        whatever this says, and the computation is neither remembered nor corrected: a policy that is not content
        evaluates at the next step. What it cost counts in the trace's work.

        Args:
            step: the step that was decided on, with the signals of this place.
            place: name of the place.
            drafted: ``(B, ...)`` what flows on from the place; not to be changed or kept without copying.
            computed: ``(B, ...)`` what the place makes of what entered it, which may be a stand-in itself; rows that
                were evaluated are as in ``drafted``. Not to be changed or kept without copying.
            state: what ``observe``, or ``observe_place``, returned.

        Returns:
            The next state.
        """
        return state

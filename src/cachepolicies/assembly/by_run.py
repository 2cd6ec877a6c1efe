"""The engine of a run, chosen when it begins: planned from a profile, or learned from the run before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from attrs import define, evolve, field, frozen

from cachepolicies.assembly.default import (
    Recipe,
    adaptive,
    corrected_line,
    planned,
    serves,
    skipped_by,
    without_profile,
)
from cachepolicies.assembly.knob import settings_for
from cachepolicies.base.budget import Budget
from cachepolicies.base.host import DeclaredTimesteps
from cachepolicies.contracts.policy import PolicySettings
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.engine.call import Call, Declaration
from cachepolicies.engine.choice import Chosen
from cachepolicies.engine.engine import Engine
from cachepolicies.learning.profile import profile_of
from cachepolicies.learning.recorder import RecordedRun, RunRecorder
from cachepolicies.learning.sensitivities import NAMES, SensitivityRecorder
from cachepolicies.learning.store import LearnedProfiles
from cachepolicies.learning.subject import Subject
from cachepolicies.policies.never import Never
from cachepolicies.policies.sencache import SenCache
from cachepolicies.profiles.missing import profile_is_missing
from cachepolicies.profiles.schema import Profile
from cachepolicies.substitutes import steps_by_differences
from cachepolicies.substitutes.resolve import as_substitute

_RECORDING = "recorded to learn from: every step of this run is evaluated, and runs like it are planned from then on"

_MEASURING = (
    "recorded to learn from: every step of this run is evaluated, and twice more to measure how sensitive the model "
    "is; runs like it are cached from then on"
)

_NEAR = 1e-4

BuildEngine: TypeAlias = "Callable[[Recipe, Profile | None, RunRecorder | None], Engine]"
"""Resolves a recipe with a profile, for a run that somebody looks on at or not."""


@frozen(eq=False)
class _Run:
    """What is known of a run when it begins."""

    subject: Subject
    timesteps: tuple[float, ...] | None
    first_t: float


@define(eq=False)
class ByRun:
    """Chooses by what the run is: its timesteps, and the shape and dtype of its latents.

    With a profile a run on its timesteps is planned, and one on other timesteps follows SenCache's rule with a
    tolerance solved for the budget. Without one the first run is recorded, at no further evaluation, and what was
    learned serves every run like it from then on, in this process and, where the model can be told from others, in any
    later one. With learning switched off a rule is used that needs nothing measured.

    An undeclared run that begins where a known one began is expected to go where that went; see `Choice`.

    Attributes:
        setup: model, network, adapter and site, resolved.
        budget: of every run.
        asked: whether the user asked for the budget; else it is the one of those who do not.
        profile: as it was given, or ``None``.
        rule: a policy whose knob is solved for the budget, of SenCache's the tolerance over t; ``None`` to plan the
            steps to evaluate.
        substitute: instead of the best.
        build: makes an engine.
        scheduler: returns the scheduler in use, ``None`` where it is not known.
        learned: where what is learned is kept; ``None`` to learn nothing.
        part: whether the denoiser may be called in a part of a run only.
        guidance: returns the scale of the guidance, where the caller knows it.
    """

    setup: Setup
    budget: Budget
    asked: bool
    profile: Profile | None
    rule: PolicySettings | None
    substitute: str | Substitute | None
    build: BuildEngine
    scheduler: Callable[[], Scheduler | None]
    learned: LearnedProfiles | None
    copies: int | None
    part: bool = False
    guidance: Callable[[], float | None] = lambda: None
    latest: Engine = field(init=False)
    sentence: str = field(init=False, default="")
    _engines: dict[tuple[int, tuple[float, ...] | None, str], tuple[Engine, str]] = field(factory=dict, init=False)
    _subjects: dict[tuple[object, ...], Subject] = field(factory=dict, init=False)
    _of_engine: dict[int, tuple[Subject, Profile]] = field(factory=dict, init=False)
    _hinted: bool = field(default=False, init=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False)

    def __attrs_post_init__(self) -> None:
        if self.rule is not None and not isinstance(self.rule, SenCache):
            self.learned = None  # what runs show says nothing of its knob
        if self.rule is None and self.profile is not None and self.profile.origin == "published":
            self.profile = None  # published thresholds measure worse than what needs no profile (docs: other caches)
        if self.profile is not None:
            self.latest = self._served(self.profile, self.profile.timesteps)
            return
        if self.learned is None and isinstance(self.rule, SenCache):
            raise profile_is_missing(self.rule.name, NAMES, self.setup.model)
        if self.learned is None and self.budget.target is not None:
            without_profile(self.budget, None, None, self._site)  # says what is missing
        self.sentence = "nothing is known of the model yet"
        self.latest = self.build(Recipe(Never(), "hold", self.sentence), None, None)

    def choose(self, call: Call, declaration: Declaration | None) -> Chosen:
        """Return what serves a run; see `cachepolicies.engine.choice.Choice.choose`.

        Raises:
            NeedsError, SettingsError, PolicyError: the budget cannot be met on this run; see `CachedDenoiser`.
        """
        with self._lock:
            run = _Run(self._subject(call), None if declaration is None else declaration.timesteps, call.t)
            chosen = self._chosen(run, declaration)
            self.latest = chosen.engine
            hint = "" if self._hinted else _better_solver(self.scheduler())
            self._hinted = True
            return evolve(chosen, notes=(self.sentence, hint) if hint else (self.sentence,))

    def unexpected(self, engine: Engine) -> Engine:
        """Return an engine that evaluates everything; what was expected is expected no more."""
        with self._lock:
            if id(engine) in self._of_engine and self.learned is not None:
                subject, profile = self._of_engine[id(engine)]
                self.learned.pass_over(subject, profile)
            return self.build(Recipe(Never(), "hold", "left the expected timesteps"), self.profile, None)

    @property
    def _site(self) -> ResolvedSite:
        site = self.setup.site
        assert site is not None
        return site

    def _chosen(self, run: _Run, declaration: Declaration | None) -> Chosen:
        if self.profile is not None:
            if run.timesteps is not None:
                return Chosen(self._served(self.profile, run.timesteps))
            if declaration is not None or not _begins(self.profile, run.first_t):
                return Chosen(self._unknown_length(run))
            return Chosen(self._served(self.profile, self.profile.timesteps), _expected(self.profile))
        if self.learned is None:
            return Chosen(self._without_profile(run))
        if run.timesteps is not None:
            found = self.learned.of_run(run.subject, run.timesteps)
        else:
            found = self.learned.begun_at(run.subject, run.first_t)
        if found is None or not self._is_enough(found):
            return Chosen(self._recording(run))
        engine = self._served(found, run.timesteps or found.timesteps)
        self._of_engine[id(engine)] = run.subject, found
        return Chosen(engine, _expected(found) if declaration is None else None)

    def _is_enough(self, profile: Profile) -> bool:
        return self.rule is None or {"alpha_x", "alpha_t"} <= set(profile.curves)

    def _served(self, profile: Profile, timesteps: tuple[float, ...]) -> Engine:
        key = id(profile), timesteps, _record_of(self.scheduler())
        if key not in self._engines:
            recipe = self._recipe(profile, timesteps)
            self._engines[key] = self.build(recipe, profile, None), recipe.sentence
        engine, self.sentence = self._engines[key]
        return engine

    def _recipe(self, profile: Profile, timesteps: tuple[float, ...]) -> Recipe:
        scheduler = self.setup.scheduler if self.scheduler() is None else self.scheduler()
        if self.rule is not None and not _solves_over_t(self.rule):
            return self._by_knob(self.rule, profile, timesteps, scheduler)
        if isinstance(self.rule, SenCache) and not self.asked and "displacement" not in profile.tables:
            why = f"profile {profile.name!r} has no runs to solve for a tolerance on: that of the paper"
            return Recipe(evolve(self.rule, preset="paper"), self.substitute or "hold", why)
        if "change" not in profile.tables or "displacement" not in profile.tables:
            return self._nothing_known(timesteps or None, scheduler)
        if self.rule is None and serves(profile, timesteps):
            return planned(profile, self.budget, timesteps, scheduler, self._site, self.substitute)
        rule = self.rule if isinstance(self.rule, SenCache) else None
        return adaptive(profile, self.budget, timesteps, scheduler, self._site, rule, self.substitute)

    def _by_knob(
        self,
        rule: PolicySettings,
        profile: Profile | None,
        timesteps: tuple[float, ...],
        scheduler: Scheduler | None,
    ) -> Recipe:
        """Return a policy with its knob solved for."""
        path = profile is not None and "change" in profile.tables
        substitute = (
            self.substitute
            or (rule.stand_in if path else rule.substitute)
            or corrected_line(scheduler, timesteps, self._site, along_path=path)
        )
        count = self.budget.of_run(len(timesteps), skipped_by(self._site))
        there = self.setup.with_parts(profile=profile, scheduler=scheduler)
        stand_in = as_substitute(as_substitute(substitute).resolve(there))
        made = settings_for(rule, count, len(timesteps), there.with_parts(substitute=stand_in))
        return Recipe(
            made,
            substitute,
            f"{made.name}, {made.knob}={getattr(made, made.knob or 'name'):.4g} solved for {count} of {len(timesteps)} "
            f"steps, {substitute} stands in",
        )

    def _nothing_known(self, timesteps: tuple[float, ...] | None, scheduler: Scheduler | None) -> Recipe:
        clock = "timestep" if self.setup.adapter is None else self.setup.adapter.clock
        return without_profile(self.budget, timesteps, scheduler, self._site, self.substitute, clock)

    def _without_profile(self, run: _Run) -> Engine:
        key = 0, run.timesteps, _record_of(self.scheduler())
        if key not in self._engines:
            if self.rule is not None and run.timesteps is not None and not isinstance(self.rule, SenCache):
                recipe = self._by_knob(self.rule, None, run.timesteps, self.scheduler())
            else:
                recipe = self._nothing_known(run.timesteps, self.scheduler())
            self._engines[key] = self.build(recipe, None, None), recipe.sentence
        engine, self.sentence = self._engines[key]
        return engine

    def _unknown_length(self, run: _Run) -> Engine:
        assert self.profile is not None
        self.sentence = (
            f"the run was not declared, and begins at t={run.first_t:g}, not where profile {self.profile.name!r} does "
            f"(t={self.profile.timesteps[0]:g}): everything is evaluated; declare it, "
            "`with denoiser.run(timesteps=...)`"
        )
        return self.build(Recipe(Never(), "hold", self.sentence), self.profile, None)

    def _recording(self, run: _Run) -> Engine:
        learned = self.learned
        assert learned is not None

        def keep(recorded: RecordedRun) -> None:
            with self._lock:
                made = profile_of(recorded, self.setup.model, self.scheduler(), self.guidance())
                learned.keep(run.subject, made, run.timesteps)

        def refuse(why: str) -> None:
            self.sentence = f"nothing was learned: {why}"

        measured = self.rule is not None
        self.sentence = _MEASURING if measured else _RECORDING
        kind = SensitivityRecorder if measured else RunRecorder
        recorder = kind(keep, refuse, part=self.part, guidance=self.guidance())
        return self.build(Recipe(Never(), "hold", self.sentence), None, recorder)

    def _subject(self, call: Call) -> Subject:
        key = tuple(call.x.shape[1:]), call.x.dtype, self.guidance(), _record_of(self.scheduler())
        if key not in self._subjects:
            assert self.setup.model is not None
            self._subjects[key] = Subject.of(
                self.setup.model,
                self.setup.network,
                self.scheduler(),
                shape=call.x.shape[1:],
                dtype=call.x.dtype,
                copies=self.copies,
                site=self._site.name,
                guidance=self.guidance(),
            )
        return self._subjects[key]


def _solves_over_t(rule: PolicySettings) -> bool:
    return isinstance(rule, SenCache) and rule.is_solved_for


def _better_solver(scheduler: Scheduler | None) -> str:
    """Return what to say of a solver that another one under the same cache is nearer to the exact solution than."""
    if scheduler is None or not steps_by_differences(scheduler):
        return ""
    return (
        "a better solver costs no more evaluations: UniPC under the same plan was nearer to the exact solution than "
        "Euler, by 12 and 19 dB on two flow-matching models (docs: Beside other caches)"
    )


def _record_of(scheduler: Scheduler | None) -> str:
    return "" if scheduler is None else f"{scheduler.name} {dict(scheduler.config)}"


def _begins(profile: Profile, first_t: float) -> bool:
    return bool(profile.timesteps) and abs(profile.timesteps[0] - first_t) <= _NEAR * abs(first_t)


def _expected(profile: Profile) -> Declaration:
    return Declaration(DeclaredTimesteps.of(profile.timesteps))

"""The base classes: what is abstract, what has a default, and which subclasses are refused where they are defined."""

from __future__ import annotations

import re

import pytest

from cachepolicies import (
    CachePolicy,
    Decision,
    EngineReason,
    Needs,
    PolicyError,
    PolicySettings,
    Reason,
    ScoreSettings,
    Setup,
    Signal,
    Site,
    Substitute,
    ToleranceSchedule,
)
from cachepolicies.contracts import Extrapolation, ResolvedSite, RunAwareDenoiser, Score
from cachepolicies.contracts.declared import declared_members
from cachepolicies.planning import Objective
from cachepolicies.policies import Never
from cachepolicies.registry.load import load_plugins

CONTRACTS = {
    CachePolicy: {"name", "decide"},
    PolicySettings: {"name", "resolve"},
    Substitute: {"name", "history", "predict"},
    Extrapolation: {"name", "order", "coefficients", "predict"},
    ScoreSettings: {"name", "resolve"},
    Score: {"name", "at"},
    Signal: {"name", "read"},
    Site: {"name", "resolve"},
    ResolvedSite: {"name", "serve"},
    ToleranceSchedule: {"name", "start"},
    RunAwareDenoiser: {"run"},
    Objective: {"name", "start", "edges", "join", "cost"},
}
"""Contract to what has to be written."""


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda kind: kind.__name__)
def test_what_has_to_be_written_is_abstract_and_nothing_else(contract):
    assert contract.__abstractmethods__ == CONTRACTS[contract]
    assert CONTRACTS[contract] <= set(declared_members(contract))
    with pytest.raises(TypeError, match="abstract"):
        contract()


def test_a_policy_is_two_lines():
    class Always(CachePolicy):
        name = "always"

        def decide(self, step, state):
            return Decision.same(False, EngineReason.NOTHING_TO_REUSE, 1)

    made = Always()
    assert (made.needs, made.reuses, made.grain) == (Needs(), True, "call")
    assert made.start(None) is None  # type: ignore[arg-type]
    assert made.resolve(Setup()) is made
    assert made.observe(None, None, None, "state") == "state"  # type: ignore[arg-type]


def write(base, name, member):
    return type("Mine", (base,), {name: member})


@pytest.mark.parametrize(
    "slip", ["descide", "decied", "deicde", "Decide", "obsrve", "observes", "need", "reusse", "strat"]
)
def test_a_slip_of_the_pen_is_refused(slip):
    with pytest.raises(PolicyError, match=rf"defines '{slip}', which its contract does not know; did you mean '\w+'"):
        write(CachePolicy, slip, lambda self, *args: None)
    with pytest.raises(PolicyError, match="did you mean"):
        write(CachePolicy, slip, property(lambda self: None))


@pytest.mark.parametrize("name", ["decisions_of", "_observe", "score", "moved", "threshold_at", "finish"])
def test_names_of_their_own_are_free(name):
    write(CachePolicy, name, lambda self: None)


@pytest.mark.parametrize(
    ("base", "name", "member", "message"),
    [
        (CachePolicy, "needs", lambda self: Needs(), "needs is a method, and its contract has a property there"),
        (CachePolicy, "start", property(lambda self: None), "start is a property, and its contract has a method"),
        (CachePolicy, "decide", lambda self, step: None, "cannot be called as its contract says, decide(self, step"),
        (CachePolicy, "observe", lambda self, step, state: None, "cannot be called as its contract says, observe("),
        (Substitute, "predict", lambda self, t: None, "cannot be called as its contract says, predict(self, context"),
        (Substitute, "gaurd", property(lambda self: 2.0), "did you mean 'guard'"),
        (Signal, "raed", lambda self, at: None, "did you mean 'read'"),
        (Site, "resolve", lambda self: None, "resolve(self, setup)"),
    ],
)
def test_what_cannot_be_called_as_the_contract_says_is_refused(base, name, member, message):
    with pytest.raises(PolicyError, match=re.escape(message)):
        write(base, name, member)


def test_further_arguments_with_defaults_and_class_attributes_will_do():
    class Mine(CachePolicy):
        name = "mine"
        needs = Needs(run_length=True)
        reuses = False

        def decide(self, step, state, *, verbose=False):
            return None

        @staticmethod
        def observe(step, decision, output, state):
            return state

        @classmethod
        def start(cls, run):
            return None

    assert Mine().needs.run_length


def test_subclasses_of_subclasses_are_looked_at_too():
    with pytest.raises(PolicyError, match="did you mean 'decide'"):
        write(Never, "decidde", lambda self, step, state: None)


@pytest.mark.parametrize("kind", ["policies", "scores", "sites", "substitutes"])
def test_everything_that_is_registered_derives_from_its_contract(kind):
    base = {"policies": PolicySettings, "scores": ScoreSettings, "sites": Site, "substitutes": Substitute}[kind]
    for entry in getattr(load_plugins(), kind).entries():
        made = entry.factory.resolve()
        assert issubclass(getattr(made, "func", made), base), entry.name


def test_reasons_are_members_with_a_text():
    class Why(Reason):
        ROOM = "room for one more"

    assert isinstance(Why.ROOM, Reason)
    assert (str(Why.ROOM), Why.ROOM.text, f"{Why.ROOM}") == ("room for one more",) * 3
    assert Why.ROOM == "room for one more"
    assert EngineReason.NOTHING_TO_REUSE.text == "nothing to reuse"

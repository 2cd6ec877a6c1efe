"""The testing kit itself: every property has a broken object that it catches, and no sound one is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import hypothesis
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import find
from hypothesis import strategies as st

from broken_plugins import ANY, BROKEN, SOUND, Broken, ChangesItsMind, Sound
from cachepolicies import SettingsError
from cachepolicies.testing import (
    DoesNotApply,
    PropertyError,
    check_policy,
    parametrize_with_checks,
    policy_checks,
    strategies,
)
from cachepolicies.testing.adapter import ADAPTER
from cachepolicies.testing.checks import Suite
from cachepolicies.testing.comparing import difference_between
from cachepolicies.testing.policy import POLICY
from cachepolicies.testing.scheduler import SCHEDULER
from cachepolicies.testing.score import SCORE
from cachepolicies.testing.settings import SETTINGS
from cachepolicies.testing.signal import SIGNAL
from cachepolicies.testing.site import SITE
from cachepolicies.testing.strategies import RunPlan
from cachepolicies.testing.substitute import SUBSTITUTE
from cachepolicies.testing.tolerance import TOLERANCE

SUITES: tuple[Suite, ...] = (POLICY, SUBSTITUTE, SITE, ADAPTER, SCHEDULER, TOLERANCE, SCORE, SIGNAL)
SHARED = {each.name for each in SETTINGS}


@pytest.fixture
def few_examples():
    """One example of every property, or two: enough to see a fault that is always there."""
    usual = hypothesis.settings()
    hypothesis.settings.register_profile("few", usual, max_examples=max(10, usual.max_examples // 10))
    hypothesis.settings.load_profile("few")
    yield
    hypothesis.settings.register_profile("before", usual)
    hypothesis.settings.load_profile("before")


def failing(checks) -> list[str]:
    found = []
    for check in checks:
        try:
            check()
        except DoesNotApply:
            continue
        except PropertyError:
            found.append(check.tested.name)
    return found


# -- the table --------------------------------------------------------------------------------------------------------


def test_every_property_has_a_broken_object():
    """Add one to tests/broken_plugins.py for a property that has none; those of settings need one for all kinds."""
    covered = {(one.kind, one.name) for one in BROKEN}
    settings = {name for _, name in covered} & SHARED
    assert settings == SHARED
    missing = {(s.kind, name) for s in SUITES for name in s.properties if name not in SHARED} - covered
    assert not missing
    unknown = covered - {(s.kind, name) for s in SUITES for name in s.properties}
    assert not unknown


@pytest.mark.parametrize("one", BROKEN, ids=lambda one: f"{one.kind}-{one.name}".replace(" ", "_"))
def test_a_broken_object_is_caught_by_its_property(one: Broken):
    check = next(check for check in one.checks() if check.tested.name == one.name)
    with pytest.raises(PropertyError) as caught:
        check()
    message = str(caught.value)
    assert caught.value.name == one.name
    assert f"does not have the property {one.name!r}: {check.tested.sentence}" in message
    assert check.subject in message
    assert set(caught.value.example) == set(check.tested.drawn)


@pytest.mark.usefixtures("few_examples")
@pytest.mark.parametrize("one", BROKEN, ids=lambda one: f"{one.kind}-{one.name}".replace(" ", "_"))
def test_a_broken_object_is_caught_by_no_other(one: Broken):
    """A fault of form is met by everything that comes later; what comes before, and every other fault, is silent."""
    checks = [check for check in one.checks() if check.tested.name != one.name]
    if one.also == ANY:
        names = [check.tested.name for check in one.checks()]
        checks = checks[: names.index(one.name)]
    assert set(failing(checks)) <= one.also


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_object_passes(kind: str):
    assert failing(SOUND[kind]()) == []


# -- what a failure says ----------------------------------------------------------------------------------------------


def test_a_failure_prints_the_smallest_example():
    with pytest.raises(PropertyError) as caught:
        check_policy(ChangesItsMind())
    lines = str(caught.value).splitlines()
    assert lines[0] == "policy ChangesItsMind(most=2)"
    assert lines[1].startswith("  does not have the property 'decides_the_same_when_asked_twice': Asked twice at one")
    assert lines[2] == "  found: asked twice at t=1000: the decision.reuse[0] is False and True"
    assert lines[3] == "  smallest example:"
    assert lines[4].strip().startswith("run = RunPlan(timesteps=(1000.0,), declared=True")
    assert lines[5].strip().startswith("batch = Batch(samples=1, copies=1, seed=0, pace=0.1, dtype=torch.float32")
    assert isinstance(caught.value, AssertionError)


def test_a_printed_example_can_be_typed_in_again():
    plan = RunPlan((1000.0, 500.0), False, True, (1, 0))
    assert eval(repr(plan)) == plan
    batch = strategies.Batch(2, 2, 3, 0.01, torch.float64)
    assert torch.equal(eval(repr(batch), {"Batch": strategies.Batch, "torch": torch}).latents(1), batch.latents(1))


# -- known failures ---------------------------------------------------------------------------------------------------


KNOWN = {"decides_the_same_when_asked_twice": "it is meant to change its mind"}


def test_a_known_failure_is_passed_over():
    check_policy(ChangesItsMind(), expected_failures=KNOWN)


def test_a_known_failure_that_passes_is_an_error():
    with pytest.raises(PropertyError, match="it holds, and a failure was expected") as caught:
        check_policy(Sound(), expected_failures=KNOWN)
    assert "it is meant to change its mind" in str(caught.value)


def test_a_known_failure_that_does_not_apply_is_an_error():
    with pytest.raises(PropertyError, match="it says nothing about this object, and a failure was expected"):
        check_policy(Sound(), expected_failures={"places_do_not_see_each_other": "no reason"})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"decides_the_same": "so"}, "no property of a policy; .*known: "),
        ({"takes_any_run": ""}, "say in words why"),
        ({"takes_any_run": None}, "say in words why"),
    ],
)
def test_bad_declarations(expected, message):
    with pytest.raises(SettingsError, match=message):
        policy_checks(Sound(), expected_failures=expected)


# -- with pytest ------------------------------------------------------------------------------------------------------


@parametrize_with_checks([[check for check in policy_checks(Sound(), label="mine") if "name" in check.id]])
def test_every_check_is_a_test(check, request):
    assert request.node.name == "test_every_check_is_a_test[mine-has_a_name]"
    check()


def test_known_failures_are_strict_xfails():
    mark = parametrize_with_checks([policy_checks(ChangesItsMind(), expected_failures=KNOWN)])
    (marked,) = [parameter for parameter in mark.args[1] if parameter.marks]
    assert marked.id == "sound-decides_the_same_when_asked_twice"
    (xfail,) = marked.marks
    assert xfail.kwargs == {
        "reason": KNOWN["decides_the_same_when_asked_twice"],
        "strict": True,
        "raises": PropertyError,
    }
    with pytest.raises(PropertyError):
        marked.values[0]()


def test_more_examples_are_tried_under_a_profile_that_wants_more():
    usual, seen = hypothesis.settings(), []
    suite: Suite = Suite("thing")
    suite.property(examples=4, number=lambda _: st.integers())(lambda case, number: seen.append(number))
    (check,) = suite.checks(None, "it", "it", None)
    try:
        for factor in (1, 3):
            seen.clear()
            hypothesis.settings.register_profile("more", usual, max_examples=100 * factor)
            hypothesis.settings.load_profile("more")
            check()
            assert len(seen) == 4 * factor
    finally:
        hypothesis.settings.register_profile("before", usual)
        hypothesis.settings.load_profile("before")


# -- without hypothesis -----------------------------------------------------------------------------------------------


NEEDS_HYPOTHESIS_ONLY = """
import sys, cachepolicies
print([m for m in ("hypothesis", "pytest") if m in sys.modules])
sys.modules["hypothesis"] = None
try:
    import cachepolicies.testing
except ImportError as error:
    print(error)
del sys.modules["hypothesis"]
sys.modules["pytest"] = None
from cachepolicies.testing import check_tolerance_schedule
from cachepolicies.tolerances import Constant
check_tolerance_schedule(Constant(0.1))
print("passed")
"""


def test_the_library_needs_no_hypothesis_and_the_kit_no_pytest():
    done = subprocess.run([sys.executable, "-c", NEEDS_HYPOTHESIS_ONLY], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        'cachepolicies.testing needs hypothesis; pip install "cachepolicies[testing]"',
        "passed",
    ]


# -- strategies -------------------------------------------------------------------------------------------------------


def test_runs_have_second_calls_and_jumps():
    assert RunPlan((3.0, 2.0, 1.0)).calls == (3.0, 2.0, 1.0)
    assert RunPlan((3.0, 2.0, 1.0), second_calls=True).calls == (3.0, 2.0, 2.0, 1.0, 1.0)
    assert RunPlan((3.0, 2.0, 1.0), back=(1, 0)).calls == (3.0, 2.0, 3.0, 2.0, 1.0)
    plan = find(strategies.runs(), lambda plan: plan.second_calls and plan.back is not None and not plan.declared)
    assert len(plan.calls) > len(plan.timesteps)
    assert find(strategies.runs(timesteps=(2.0, 1.0)), lambda plan: True).timesteps == (2.0, 1.0)


def test_a_sample_does_not_depend_on_its_batch():
    batch = find(strategies.doubled_batches(), lambda batch: batch.samples == 3)
    x = batch.latents(2)
    assert x.shape[0] == batch.rows == 6
    assert torch.equal(x[:3], x[3:])
    assert torch.equal(x[1:2], evolve(batch, copies=1).latents(2, [1]))


def test_branches_come_in_any_order_and_may_be_left_out():
    two = find(strategies.branches(steps=2), lambda found: found[0] == ("uncond", "cond") and len(found[1]) == 1)
    assert all(names for names in two)


@pytest.mark.parametrize("kind", ["mixture", "linear", "blocks"])
def test_denoisers_return_what_they_say(kind):
    for form in strategies.FORMS:
        for dtype in strategies.DTYPES:
            x = torch.randn(2, 2, 3, 4).to(dtype)
            output = strategies.Denoiser(kind, form, dtype).build()(x, torch.full((2,), 500.0))
            tensor = {"tensor": lambda o: o, "tuple": lambda o: o[0], "object": lambda o: o.sample}[form](output)
            assert (tensor.shape, tensor.dtype) == (x.shape, dtype)


# -- comparing --------------------------------------------------------------------------------------------------------


@frozen(eq=False)
class Parts:
    kind: ClassVar[str] = "parts"
    values: object


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (1, 1, None),
        (1.0, 1, "it is a float and a int"),
        (float("nan"), float("nan"), None),
        ((1, 2), (1, 3), "[1] is 2 and 3"),
        ({"a": 1}, {"b": 1}, "it has ['a'] and ['b']"),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), None),
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]]), "the tensor differs at (0, 1): 2.0 and 3.0"),
        (torch.zeros(2), torch.zeros(3), "the tensor is (2,) torch.float32 and (3,) torch.float32"),
        (Parts((1, [2])), Parts((1, [2])), None),
        (Parts((1, [2])), Parts((1, [4])), ".values[1][0] is 2 and 4"),
    ],
)
def test_differences(one, other, found):
    assert difference_between(one, other) == found


def test_functions_are_compared_by_what_they_close_over():
    def adds(n):
        return lambda x: x + n

    assert difference_between(adds(1), adds(1)) is None
    assert difference_between(adds(1), adds(2)) == "[0][0] is 1 and 2"

"""Spec strings, the validators of settings, and building from settings."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from attrs import field, frozen, validators
from hypothesis import example, given
from hypothesis import strategies as st

from cachepolicies.base.errors import CachePoliciesError, SettingsError
from cachepolicies.base.settings import (
    boolean,
    build,
    finite,
    fraction,
    non_negative,
    non_negative_int,
    one_of,
    plain,
    positive,
    positive_int,
    shown,
)
from cachepolicies.base.specs import format_spec, parse_spec

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,12}", fullmatch=True)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text() | st.binary()
)
# An infinity inside a container has no literal in its repr, so containers hold finite numbers.
INNER = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = SCALARS | st.recursive(
    INNER,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(name=NAMES, settings=st.dictionaries(KEYS, VALUES, max_size=5))
@example(name="sencache", settings={"epsilon": 0.1, "max_reuse": 3})
@example(name="a-b.c", settings={"x": ("a,b", [1, (2, "]")], 'it\'s \\ "so"')})
@example(name="a", settings={"x": math.inf, "y": -math.inf})
def test_round_trip(name, settings):
    assert parse_spec(format_spec(name, settings)) == (name, settings)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused_with_the_text_shown(text):
    try:
        name, settings = parse_spec(text)
    except SettingsError as error:
        message = str(error)
        assert repr(text) in message
        assert "name:key=value" in message
    else:
        assert name == text.partition(":")[0].strip()
        assert all(key.isidentifier() for key in settings)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("never", ("never", {})),
        ("  uniform : every = 3 ", ("uniform", {"every": 3})),
        ("sencache:epsilon=1e-2,max_reuse=3", ("sencache", {"epsilon": 0.01, "max_reuse": 3})),
        ("a:x=-0.5,y=+2,z=1_000", ("a", {"x": -0.5, "y": 2, "z": 1000})),
        ("a:mode=linear,on=True,off=None", ("a", {"mode": "linear", "on": True, "off": None})),
        ("a:b=(1,2),c=[3,(4,5)],d={'k': 6}", ("a", {"b": (1, 2), "c": [3, (4, 5)], "d": {"k": 6}})),
        ("a:b='x,y=z',c=\"it's\"", ("a", {"b": "x,y=z", "c": "it's"})),
        ("a:b='say \\'a,b\\'',c=1", ("a", {"b": "say 'a,b'", "c": 1})),
        ("a:path=/data/p.json,other=./q-1.json", ("a", {"path": "/data/p.json", "other": "./q-1.json"})),
        ("FlowMatchEulerDiscreteScheduler:shift=3.0", ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})),
        ("a:repo=org/name:v2", ("a", {"repo": "org/name:v2"})),
        ("sencache:epsilon=plan.json", ("sencache", {"epsilon": "plan.json"})),
        ("sencache:epsilon=optimal", ("sencache", {"epsilon": "optimal"})),
        ("sencache:epsilon=optimal:nfe=22", ("sencache", {"epsilon": "optimal:nfe=22"})),
        ("sencache:epsilon=a:b=-1.5 , max_reuse=3", ("sencache", {"epsilon": "a:b=-1.5", "max_reuse": 3})),
        ("sencache:epsilon=plan:path=./p.json", ("sencache", {"epsilon": "plan:path=./p.json"})),
        (
            "sencache:epsilon='optimal:nfe=2,weights=x',n=1",
            ("sencache", {"epsilon": "optimal:nfe=2,weights=x", "n": 1}),
        ),
        ("a:b=c:d=(1,2)", ("a", {"b": "c:d=(1,2)"})),
    ],
)
def test_forms(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "'' is not a name"),
        (":epsilon=1", "'' is not a name"),
        ("sen cache", "'sen cache' is not a name"),
        ("sencache epsilon=1", "is not a name"),
        ("sencache:", "a setting is empty"),
        ("sencache:epsilon=0.1,", "a setting is empty"),
        ("sencache:epsilon", "'epsilon' has no '='"),
        ("sencache:epsilon=0,1", "'1' has no '='"),
        ("sencache:epsilon=", "'epsilon' has no value"),
        ("sencache:=1", "'' is not the name of a setting"),
        ("sencache:max reuse=1", "'max reuse' is not the name of a setting"),
        ("sencache:epsilon=0.1,epsilon=0.2", "'epsilon' is given twice"),
        ("sencache:epsilon=0.1x", "'0.1x', is neither"),
        ("sencache:epsilon=-.5.1", "'-.5.1', is neither"),
        ("sencache:epsilon==1", "'=1', is neither"),
        ("sencache:epsilon=f(1)", "'f(1)', is neither"),
        ("sencache:epsilon=a b", "'a b', is neither"),
        (
            "sencache:epsilon=optimal:nfe=2x",
            "'epsilon' is a spec itself, and malformed: malformed spec 'optimal:nfe=2x'",
        ),
        ("sencache:epsilon=optimal:nfe==2", "'epsilon' is a spec itself"),
        ("a:b=c:d=e:f=1", "'b' is a spec itself, and malformed: malformed spec 'c:d=e:f=1': the value of 'd'"),
        ("a:b=" * 5000 + "1", "'b' is a spec itself"),
        ("sencache:epsilon=(1,2", "')' is missing"),
        ("sencache:epsilon=[1,2)", "')' closes nothing"),
        ("sencache:epsilon=1)", "')' closes nothing"),
        ("sencache:mode='linear", "the quote ' is not closed"),
        ("sencache:a=" + "(" * 5000 + ")" * 5000, "is neither"),
    ],
)
def test_malformed(spec, reason):
    with pytest.raises(SettingsError) as caught:
        parse_spec(spec)
    assert reason in str(caught.value)
    assert shown(spec, 300) in str(caught.value)


def test_a_spec_must_be_text():
    with pytest.raises(SettingsError, match=r"a spec is a string .* got int"):
        parse_spec(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"x": math.nan}, {"x": len}, {"x": [math.inf]}, {"not valid": 1}])
def test_what_cannot_be_written_is_refused(settings):
    with pytest.raises(SettingsError):
        format_spec("a", settings)


def _holder(check):
    @frozen
    class Knobs:
        knob: object = field(converter=plain, validator=check)

    return Knobs


GOOD = {
    finite: [0, -1.5, Fraction(1, 3), np.float32(2.5), np.int64(-4)],
    non_negative: [0, 0.0, 3, np.float64(0.1)],
    positive: [1, 1e-300, np.float16(0.5)],
    fraction: [0, 1, 0.2, np.float32(1.0)],
    non_negative_int: [0, 7, np.int32(0), np.uint8(3)],
    positive_int: [1, 7, np.int64(1)],
    boolean: [True, False, np.bool_(True)],
}
NEVER_A_NUMBER = [math.nan, math.inf, -math.inf, np.float32("nan"), True, np.bool_(False), "1", None, 1j, [1], 10**400]
BAD = {
    finite: NEVER_A_NUMBER,
    non_negative: [*NEVER_A_NUMBER, -1e-9, -1],
    positive: [*NEVER_A_NUMBER, 0, 0.0, -0.0, -1],
    fraction: [*NEVER_A_NUMBER, -0.01, 1.01, 20],
    non_negative_int: [*NEVER_A_NUMBER[:-1], 3.0, -1, np.float64(2.0), np.int8(-1)],
    positive_int: [*NEVER_A_NUMBER[:-1], 3.0, 0, -1, np.int8(0)],
    boolean: [0, 1, "true", None, math.nan],
}
EXPECTATION = {
    finite: "a finite number",
    non_negative: "a finite number >= 0",
    positive: "a finite number > 0",
    fraction: "a fraction from 0 to 1",
    non_negative_int: "an integer >= 0",
    positive_int: "an integer >= 1",
    boolean: "True or False",
}


@pytest.mark.parametrize(("check", "value"), [(check, value) for check, values in GOOD.items() for value in values])
def test_validators_accept(check, value):
    knob = _holder(check)(value).knob
    assert knob == value
    assert not isinstance(knob, np.generic)


@pytest.mark.parametrize(("check", "value"), [(check, value) for check, values in BAD.items() for value in values])
def test_validators_refuse(check, value):
    with pytest.raises(SettingsError) as caught:
        _holder(check)(value)
    message = str(caught.value)
    assert f"Knobs: knob must be {EXPECTATION[check]}, got " in message
    assert type(plain(value)).__name__ in message
    assert len(message) < 200


def test_one_of():
    knobs = _holder(one_of("hold", "linear"))
    assert knobs("linear").knob == "linear"
    with pytest.raises(SettingsError, match=r"did you mean 'linear'\? known: hold, linear.* got 'linaer'"):
        knobs("linaer")
    with pytest.raises(SettingsError, match=r"known: hold, linear.* got 3"):
        knobs(3)


@frozen
class Sample:
    """A policy's settings."""

    epsilon: float = field(validator=non_negative)
    max_reuse: int = field(default=3, validator=non_negative_int)


def test_build():
    assert build(Sample, {"epsilon": 0.1, "max_reuse": 2}) == Sample(0.1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"epsilon": 1, "max_resue": 3},
            "policy 's': unknown setting 'max_resue': did you mean 'max_reuse'? known: epsilon, max_reuse",
        ),
        ({"max_reuse": 3}, "policy 's': missing setting epsilon; give it as epsilon=..."),
        ({"epsilon": -1.0}, "Sample: epsilon must be a finite number >= 0, got -1.0 (float)"),
    ],
)
def test_build_refuses(settings, message):
    with pytest.raises(SettingsError) as caught:
        build(Sample, settings, subject="policy 's'")
    assert str(caught.value) == message


def test_build_names_settings_and_cause_when_a_third_party_factory_refuses():
    @frozen
    class Theirs:
        every: int = field(default=2, validator=[validators.instance_of(int), validators.ge(1)])

    with pytest.raises(SettingsError, match=r"policy 'p': cannot be built with every=0: ValueError: .*>= 1"):
        build(Theirs, {"every": 0}, subject="policy 'p'")
    with pytest.raises(SettingsError, match=r"policy 'p': cannot be built with every='a': TypeError: .*int"):
        build(Theirs, {"every": "a"}, subject="policy 'p'")


def test_build_passes_any_name_to_a_factory_that_takes_any():
    assert build(lambda **settings: settings, {"a": 1}) == {"a": 1}


def test_build_does_not_hide_other_errors():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build(broken, {})


def test_settings_errors_are_value_errors():
    assert issubclass(SettingsError, ValueError)
    assert issubclass(SettingsError, CachePoliciesError)

"""What a check is: one property of one object, run on examples that hypothesis makes, shrinks and reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import hypothesis
import torch
from attrs import evolve, field, frozen
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy

from cachepolicies.base.errors import CacheWarning, SettingsError, nearest_match_hint
from cachepolicies.base.settings import shown
from cachepolicies.testing.failures import DoesNotApply, PropertyError

if TYPE_CHECKING:
    import pytest

C = TypeVar("C")

Drawn = Callable[[Any], SearchStrategy[Any]]
"""Given a case, the strategy of one argument of a property."""

_USUAL_EXAMPLES = 100
"""Examples of hypothesis's own default profile; a profile with more or fewer scales those of every property."""

_SHRINKS = 150
"""So many further examples are tried to make a failing one smaller."""

_LONGEST_REPR = 300


class ExpectationError(Exception):
    """Raised inside a property: what was found. The check turns it into a `PropertyError`."""


def expect(holds: object, found: str) -> None:
    """Go on if something holds.

    Raises:
        ExpectationError: it does not.
    """
    if not holds:
        raise ExpectationError(found)


def same(difference: str | None, found: str) -> None:
    """Go on if `difference_between` found none.

    Raises:
        ExpectationError: it found one.
    """
    if difference is not None:
        raise ExpectationError(f"{found}: {difference}")


@frozen(eq=False)
class Property(Generic[C]):
    """A promise that a contract makes, as a function that looks whether it is kept.

    Attributes:
        name: readable, with underscores.
        sentence: what it says.
        body: ``body(case, **drawn)``; raises where the promise is broken.
        drawn: strategies of the arguments, made for the case.
        examples: how many are tried, under hypothesis's default profile.
        unless: given a case, returns why the property says nothing about it, ``None`` where it does.
    """

    name: str
    sentence: str
    body: Callable[..., None] = field(repr=False)
    drawn: Mapping[str, Drawn] = field(repr=False)
    examples: int
    unless: Callable[[C], str | None] | None = field(default=None, repr=False)

    def check(self, case: C, subject: str) -> None:
        """Look whether it holds.

        Args:
            case: the object, with what it needs.
            subject: how the object is named in a message.

        Raises:
            PropertyError: it does not; has the smallest example.
            DoesNotApply: it says nothing about this object.
        """
        tries = _Tries(self.body, case)
        try:
            with warnings.catch_warnings(), _one_thread():
                warnings.simplefilter("ignore", CacheWarning)
                self._run(tries, case)
        except DoesNotApply:
            raise
        except Unsatisfiable as error:
            found = "every run that was tried was refused; give `timesteps=` that it takes"
            raise PropertyError(subject, self.name, self.sentence, found) from error
        except Exception as error:
            cause = error if tries.error is None else tries.error
            example = {name: _shown(value) for name, value in tries.example.items()}
            raise PropertyError(subject, self.name, self.sentence, _found(cause), example) from cause

    def _run(self, tries: _Tries, case: C) -> None:
        reason = None if self.unless is None else self.unless(case)
        if reason is not None:
            raise DoesNotApply(reason)
        if not self.drawn:
            tries()
            return
        strategies = {name: make(case) for name, make in self.drawn.items()}
        usual = hypothesis_settings()
        configured = hypothesis_settings(
            usual,
            max_examples=max(1, round(self.examples * usual.max_examples / _USUAL_EXAMPLES)),
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        configured(hypothesis.given(**strategies)(tries.attempt))()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute in one thread: on tensors this small a second one gains nothing, and is waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Tries:
    """The examples of one property: remembers the last that failed, which is the smallest once hypothesis is done."""

    def __init__(self, body: Callable[..., None], case: Any) -> None:
        self.body, self.case = body, case
        self.example: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._after = 0
        self.attempt = self._made()

    def __call__(self, **values: Any) -> None:
        try:
            self.body(self.case, **values)
        except (DoesNotApply, hypothesis.errors.UnsatisfiedAssumption):
            raise
        except Exception as error:
            self.example, self.error = values, error
            raise

    def _made(self) -> Callable[..., None]:
        def attempt(**values: Any) -> None:
            if self.error is not None:
                self._after += 1
                # Long enough shrunk: nothing else fails any more, so that hypothesis comes to its end.
                if self._after > _SHRINKS and repr(values) != repr(self.example):
                    return
            self(**values)

        return attempt


def _shown(value: object) -> str:
    return shown(value, _LONGEST_REPR)


def _found(error: BaseException) -> str:
    if isinstance(error, ExpectationError):
        return str(error)
    return f"{type(error).__name__}: {error}"


class Suite(Generic[C]):
    """The properties of one kind of object, in the order in which they are checked.

    Attributes:
        kind: ``"policy"`` and so on.
        properties: by name.
    """

    def __init__(self, kind: str, shared: Iterable[Property[Any]] = ()) -> None:
        self.kind = kind
        self.properties: dict[str, Property[C]] = {each.name: each for each in shared}

    def property(
        self, *, examples: int = 6, unless: Callable[[C], str | None] | None = None, **drawn: Drawn
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Return a decorator that adds a function as a property; its docstring is the sentence.

        Args:
            examples: how many are tried.
            unless: given a case, returns why the property says nothing about it, ``None`` where it does.
            drawn: for every argument behind the case, a function of the case that returns a strategy.
        """

        def add(body: Callable[..., None]) -> Callable[..., None]:
            sentence = " ".join((body.__doc__ or "").split())
            self.properties[body.__name__] = Property(body.__name__, sentence, body, drawn, examples, unless)
            return body

        return add

    def checks(self, case: C, subject: object, label: str, expected_failures: Mapping[str, str] | None) -> list[Check]:
        """Return one check for every property.

        Raises:
            SettingsError: a failure is expected of a property that there is not, or no reason is given.
        """
        expected = dict(expected_failures or {})
        for name, reason in expected.items():
            if name not in self.properties:
                raise SettingsError(
                    f"expected_failures names {name!r}, which is no property of a {self.kind}; "
                    f"{nearest_match_hint(name, self.properties)}"
                )
            if not isinstance(reason, str) or not reason.strip():
                raise SettingsError(f"expected_failures[{name!r}] is {reason!r}; say in words why it does not hold")
        named = f"{self.kind} {_shown(subject)}"
        return [Check(named, label, each, case, expected.get(name)) for name, each in self.properties.items()]


@frozen(eq=False)
class Check:
    """One property of one object, ready to be looked at: ``check()``.

    Attributes:
        subject: the object, as it prints.
        label: short name of the object, for ids.
        tested: the property that is looked at.
        case: the object with what it needs.
        expected_failure: why it is known not to hold, ``None`` where it should.
    """

    subject: str
    label: str
    tested: Property[Any]
    case: Any = field(repr=False)
    expected_failure: str | None = None

    @property
    def id(self) -> str:
        """The id of the test: object and property."""
        return f"{self.label}-{self.tested.name}"

    def __call__(self) -> None:
        """Look whether the property holds; where a failure is expected, whether it still fails.

        Raises:
            PropertyError: it does not hold, or it was expected not to and does.
            DoesNotApply: the property says nothing about this object.
        """
        try:
            self.tested.check(self.case, self.subject)
        except DoesNotApply:
            if self.expected_failure is not None:
                raise self._unexpected("it says nothing about this object") from None
            raise
        except PropertyError:
            if self.expected_failure is None:
                raise
            return
        if self.expected_failure is not None:
            raise self._unexpected("it holds")

    def _unexpected(self, what: str) -> PropertyError:
        found = f"{what}, and a failure was expected ({self.expected_failure}); take it out of expected_failures"
        return PropertyError(self.subject, self.tested.name, self.tested.sentence, found)


def run_all(checks: Iterable[Check]) -> None:
    """Run checks one after the other, passing over those that do not apply.

    Raises:
        PropertyError: the first that does not hold.
    """
    for check in checks:
        try:
            check()
        except DoesNotApply:
            continue


def parametrize_with_checks(checks: Iterable[Check | Iterable[Check]]) -> pytest.MarkDecorator:
    """Return a decorator that makes every check a test of pytest, with a readable id.

    ```python
    @parametrize_with_checks([policy_checks(MyPolicy()), substitute_checks(MySubstitute())])
    def test_contracts(check):
        check()
    ```

    A property that says nothing about an object is shown as skipped, one that is expected to fail as xfail.

    Args:
        checks: what `policy_checks` and the like return, one by one or in lists.

    Raises:
        ImportError: pytest is not installed.
    """
    import pytest

    parameters = []
    for check in _flat(checks):
        reason = check.expected_failure
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=PropertyError)]
        parameters.append(pytest.param(evolve(check, expected_failure=None), id=check.id, marks=marks))
    return pytest.mark.parametrize("check", parameters)


def _flat(checks: Iterable[Check | Iterable[Check]]) -> Iterator[Check]:
    for each in checks:
        if isinstance(each, Check):
            yield each
        else:
            yield from each

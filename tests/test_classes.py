"""No class of diffusers is accepted and then fails; what is served without an adapter is cut right."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest

from cachepolicies.base.errors import NeedsError
from cachepolicies.testing import Check, parametrize_with_checks
from class_table import BEGIN, END, classes, generated, outcome, tiny_of
from making_models import TinyModel, checks_of
from other_models import OTHERS

PAGE = (Path(__file__).resolve().parent.parent / "docs/usage/models.md").read_text()
TABLE = PAGE.partition(BEGIN)[2].partition(END)[0]
ON_PAGE = f"diffusers {diffusers.__version__} " in TABLE

SHAPES_OF_THE_BATCH = {
    "AnyFlowFARTransformer3DModel",
    "MiniMaxH3Transformer3DModel",
    "WanAnimate2Transformer3DModel",
    "TransformerTemporalModel",
    "Krea2Transformer2DModel",
    "LuminaNextDiT2DModel",
}
"""Classes whose calls cannot be cut by rows, or are not cached."""


ROUNDS_T = {"SanaWMTransformer3DModel"}
"""Classes that round t to whole numbers, so that no call is right next to another."""


def _generic() -> list[Check]:
    checks: list[Check] = []
    for name, make in OTHERS.items():
        if not hasattr(diffusers, name) or name in SHAPES_OF_THE_BATCH:
            continue
        tiny = make()
        if not tiny.batched[1:]:  # a latent and t at least: others are no denoisers
            continue
        try:
            checks += _checks(name, tiny)
        except NeedsError:
            continue
    return checks


def _checks(name: str, tiny: TinyModel) -> list[Check]:
    checks = checks_of(name, tiny)
    if name in ROUNDS_T:
        checks = [check for check in checks if check.tested.name != "nothing_flows_past_the_cut"]
    return checks


@parametrize_with_checks(_generic())
def test_served_without_an_adapter(check: Check):
    check()


@pytest.mark.parametrize("name", [] if ON_PAGE else classes())  # else the table of the page says it
@pytest.mark.parametrize("site", ["blocks", "output"])
def test_no_class_is_accepted_and_then_fails(name, site):
    tiny = tiny_of(name)
    if tiny is None:
        pytest.skip("a class of another diffusers than the page is about")
    try:
        tiny.build()(**tiny.inputs(1))
    except TypeError as error:
        pytest.skip(f"another signature than in the diffusers that the page is about: {error}")
    outcome(name, tiny, site)


@pytest.mark.skipif(not ON_PAGE, reason="the page is about another diffusers")
def test_the_table_of_classes_is_what_running_them_shows():
    shown = generated().removeprefix(BEGIN).removesuffix(END).strip()
    assert TABLE.strip() == shown, "run: python tests/class_table.py --write docs/usage/models.md"

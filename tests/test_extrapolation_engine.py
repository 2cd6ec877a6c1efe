"""Extrapolating substitutes in the engine: histories of rows and branches, the guard, the trace, memory and cost."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies import CachedDenoiser, PolicyError, Substitute, enable, sample
from cachepolicies.contracts import Extrapolation
from cachepolicies.engine.trace import joined
from cachepolicies.registry.load import load_plugins
from cachepolicies.schedulers import FlowEuler
from cachepolicies.substitutes import Hermite, Hold, Linear, Prediction, Quadratic, Taylor
from counting import counting_operators, counting_reads
from denoisers import SHAPE, Counted, mixture
from scripted import Scripted
from tiny_models import TINY

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

LEVELS = tuple(float(t) for t in range(1000, 0, -50))
SUBSTITUTES = load_plugins().substitutes.names()
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "hermite": [{}, {"order": 3, "differences": "newton"}],
    "hold": [{}],
    "linear": [{}, {"time": "log-snr", "scheduler": FlowEuler()}],
    "quadratic": [{}, {"guard": 1.1}],
    "taylor": [{}, {"order": 3}, {"order": 2, "differences": "taylorseer", "guard": None}],
}
assert SETTINGS.keys() <= set(SUBSTITUTES)
_MADE = [load_plugins().substitutes.create(name, **one) for name in SUBSTITUTES for one in SETTINGS.get(name, [{}])]
ALL = [made for made in _MADE if isinstance(made, Extrapolation)]
every = pytest.mark.parametrize("substitute", ALL, ids=[f"{s.name}-{k}" for k, s in enumerate(ALL)])

VISIBLE = [f"cachepolicies.engine.{module}" for module in ("memory", "record", "stand_in")]
"""Where the engine asks whether the host sees a tensor."""


def noise(rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


def curve(x: Tensor, t) -> Tensor:
    """An output that depends on the row and smoothly on t; reads nothing."""
    return x * 0.1 + torch.sin(x + t / 400.0)


def pattern(seed: int, rows: int, share: float = 0.6) -> dict[float, list[bool]]:
    draw = np.random.default_rng(seed)
    return {t: (draw.random(rows) < share).tolist() for t in LEVELS}


def walk(denoiser, x, levels=LEVELS, **kwargs):
    """The outputs of a run at fixed latents."""
    with denoiser.run(timesteps=levels):
        return [denoiser(x * (1 - 0.01 * k), t, **kwargs) for k, t in enumerate(levels)]


def by_hand(substitute, model, x, script, row):
    """One row's outputs, from its own evaluations and the substitute's weights, in float64."""
    known: list[tuple[float, Tensor]] = []
    outputs: list[Tensor] = []
    for k, t in enumerate(LEVELS):
        true = model(x[row : row + 1] * (1 - 0.01 * k), t)
        if known and script[t][row]:
            weights = substitute.coefficients(t, [level for level, _ in known])
            outputs.append(sum(w * y.double() for w, (_, y) in zip(weights, known, strict=False)))
        else:
            known = [(t, true), *known][: substitute.history]
            outputs.append(true.double())
    return outputs


# -- rows, branches, runs -------------------------------------------------------------------------------------------


@every
@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 4))
def test_every_row_follows_its_own_history(substitute, seed, rows):
    """Rows refresh at different steps; each is what its own evaluations give by hand, the evaluated bit for bit."""
    unguarded = substitute if substitute.guard is None else evolve(substitute, guard=None)
    script, x = pattern(seed, rows), noise(rows, seed)
    denoiser = CachedDenoiser(curve, Scripted(script), substitute=unguarded)
    outputs = walk(denoiser, x)
    for row in range(rows):
        expected = by_hand(unguarded, curve, x, script, row)
        for k, record in enumerate(denoiser.trace.records):
            if record.evaluated[row]:
                assert torch.equal(outputs[k][row], curve(x[row] * (1 - 0.01 * k), LEVELS[k]))
            torch.testing.assert_close(outputs[k][row].double(), expected[k][0], rtol=1e-3, atol=1e-3)


@every
@settings(max_examples=10)
@given(seed=st.integers(0, 2**16))
def test_a_batch_is_its_rows(substitute, seed):
    rows = 4
    script, x = pattern(seed, rows), noise(rows, seed)
    together = CachedDenoiser(curve, Scripted(script), substitute=substitute)
    outputs = walk(together, x)
    for row in range(rows):
        alone = CachedDenoiser(curve, Scripted({t: [s[row]] for t, s in script.items()}), substitute=substitute)
        singles = walk(alone, x[row : row + 1])
        for mine, theirs, a, b in zip(singles, outputs, alone.trace.records, together.trace.records, strict=True):
            assert torch.equal(mine[0], theirs[row])
            assert a.evaluated[0] == b.evaluated[row]
            assert (a.order or (None,))[0] == (b.order or (None,) * rows)[row]


@every
def test_branches_have_histories_of_their_own(substitute):
    script, x = pattern(3, 2), {"cond": noise(2, 1), "uncond": noise(2, 2)}
    both = CachedDenoiser(curve, Scripted(script), substitute=substitute)
    with both.run(timesteps=LEVELS):
        joint = [{name: both(z, t, branch=name) for name, z in x.items()} for t in LEVELS]
    for name, z in x.items():
        alone = CachedDenoiser(curve, Scripted(script), substitute=substitute)
        with alone.run(timesteps=LEVELS):
            for k, t in enumerate(LEVELS):
                assert torch.equal(joint[k][name], alone(z, t, branch=name))


@every
@pytest.mark.parametrize("ended", ["finished", "broken off"])
def test_the_history_ends_with_the_run(substitute, ended):
    script = pattern(5, 2)
    used, fresh = (CachedDenoiser(curve, Scripted(script), substitute=substitute) for _ in range(2))
    walk(used, noise(2, 9), LEVELS if ended == "finished" else LEVELS[:7])
    latest = used._requests.latest
    assert latest is not None
    assert latest.run is None
    again, expected = walk(used, noise(2, 1)), walk(fresh, noise(2, 1))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert used.trace.to_dict() == fresh.trace.to_dict()
    # undeclared, a run begins where t goes back up
    for t in (*LEVELS[:5], *LEVELS):
        last = used(noise(2, 1), t)
        if t == LEVELS[0]:
            assert torch.equal(last, curve(noise(2, 1), t))
    assert used.trace.records[0].order is None


@every
@pytest.mark.parametrize(("copies", "per_sample"), [(2, True), (1, False), (2, False)])
def test_rows_that_decide_together(substitute, copies, per_sample):
    x = noise(4) if copies == 1 else torch.cat([noise(2), noise(2)])
    decisions = 4 // copies if per_sample else 1
    script = pattern(11, decisions)
    denoiser = CachedDenoiser(
        curve, Scripted(script), substitute=substitute, cfg="batched" if copies == 2 else "separate",
        per_sample=per_sample,
    )  # fmt: skip
    outputs = walk(denoiser, x)
    for k, record in enumerate(denoiser.trace.records):
        assert len(record.evaluated) == decisions
        if record.order is not None:
            assert record.clipped is not None
            assert len(record.order) == len(record.clipped) == decisions
        if copies == 2:
            assert torch.equal(outputs[k][:2], outputs[k][2:])
    rows = CachedDenoiser(
        curve, Scripted({t: [s[row % decisions] for row in range(4)] for t, s in script.items()}), substitute=substitute
    )
    for one, other in zip(outputs, walk(rows, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(substitute, dtype):
    denoiser = CachedDenoiser(curve, Scripted(pattern(2, 2)), substitute=substitute)
    for output in walk(denoiser, noise().to(dtype)):
        assert output.dtype == dtype
        assert torch.isfinite(output).all()


@every
def test_what_is_handed_out_belongs_to_the_sampler(substitute):
    tidy, rough = (CachedDenoiser(curve, Scripted(pattern(4, 2)), substitute=substitute) for _ in range(2))
    expected = walk(tidy, noise())
    with rough.run(timesteps=LEVELS):
        for k, t in enumerate(LEVELS):
            output = rough(noise() * (1 - 0.01 * k), t)
            assert torch.equal(output, expected[k])
            output.fill_(math.nan)


@every
def test_inside_a_network_at_the_blocks(substitute):
    """What is extrapolated is the residual of the stack; refreshes leave the network's output as it is."""
    tiny = TINY["WanTransformer3DModel"]
    model = tiny.build()
    inputs = tiny.inputs(2)
    levels = (900.0, 800.0, 700.0, 600.0, 500.0)
    script = {levels[2]: [True, False], levels[4]: [True, True]}

    def forward(t):
        return model(**{**inputs, tiny.t_name: torch.full_like(inputs[tiny.t_name], t)})[0]

    with torch.no_grad():
        bare = [forward(t) for t in levels]
        with enable(model, Scripted(script), site="blocks", substitute=substitute) as on, on.run(timesteps=levels):
            cached = [forward(t) for t in levels]
            trace = on.trace
    for k in (0, 1, 3):
        assert torch.equal(cached[k], bare[k])
    torch.testing.assert_close(cached[2][1], bare[2][1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(cached[2][0], bare[2][0])
    assert trace.records[2].order == (min(substitute.order, 1), None)
    assert trace.records[4].order == (min(substitute.order, 2), min(substitute.order, 3))


@pytest.mark.parametrize(("substitute", "order"), [(Hold(), 1), (Linear(time="t"), 2), (Quadratic(time="t"), 3)])
def test_the_order_of_a_whole_sampling(substitute, order):
    """Every second step of N is skipped: the error of the sample falls as N^-(p+1), that of a global error."""
    errors, counts = [], (40, 80, 160, 320)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(1, *SHAPE)

    def model(z, t):
        return torch.sin(3 * z + t / 200) + 0.5 * z

    def euler(denoiser, levels):
        z = x
        for t, end in zip(levels, (*levels[1:], 0.0), strict=True):
            # the sampler's own error is the same in both: compare with the same steps, unskipped
            z = z + (end - t) / 1000 * denoiser(z, t)
        return z

    for count in counts:
        levels = tuple(np.linspace(1000, 1000 / count, count).tolist())
        keep = {t: k % 2 == 1 and k >= 8 for k, t in enumerate(levels)}
        cached = CachedDenoiser(model, Scripted(keep), substitute=substitute)
        errors.append((euler(cached, levels) - euler(model, levels)).square().mean().sqrt().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.35)


# -- short histories, clipping, the trace ---------------------------------------------------------------------------


def test_the_trace_says_the_order_really_used():
    script = {t: [k in (1, 3, 5, 6), k in (2, 3, 5)] for k, t in enumerate(LEVELS)}
    denoiser = CachedDenoiser(curve, Scripted(script), substitute=Quadratic(time="t", guard=None))
    walk(denoiser, noise(), LEVELS[:7])
    trace = denoiser.trace
    assert [record.order for record in trace.records] == [
        None,
        (0, None),  # one refresh each
        (None, 1),
        (1, 1),
        None,
        (2, 2),
        (2, None),
    ]
    assert trace.order == 2
    assert trace.orders() == {2: 3, 1: 3, 0: 1}
    assert trace.summary().endswith("; 3 of order 2, 3 of order 1, 1 of order 0, 0 clipped")
    assert "0 to 2" not in str(trace)
    frame = trace.to_dataframe()
    assert frame["order"].dropna().tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert not frame["clipped"].any()
    plain = json.loads(trace.to_json())
    assert plain["orders"] == {"2": 3, "1": 3, "0": 1}
    assert plain["records"][1]["order"] == [0, None]
    assert plain["records"][0]["clipped"] is None


def test_hold_is_of_order_zero_and_its_summary_as_short_as_before():
    denoiser = CachedDenoiser(curve, Scripted({LEVELS[1]: True}))
    walk(denoiser, noise(), LEVELS[:2])
    assert denoiser.trace.records[1].order == (0, 0)
    assert denoiser.trace.summary().endswith("cache ratio 50.0%")


def test_a_substitute_that_says_no_order_has_none_in_the_trace():
    class Plain(Substitute):
        name = "plain"
        history = 1

        def predict(self, context, history):
            return history[0].output * 2

    denoiser = CachedDenoiser(curve, Scripted({LEVELS[1]: True}), substitute=Plain())
    first, second = walk(denoiser, noise(), LEVELS[:2])
    assert torch.equal(second, first * 2)
    assert denoiser.trace.records[1].order is None
    assert denoiser.trace.order is None
    assert denoiser.trace.to_dict()["orders"] == {}


def test_a_prediction_with_the_wrong_number_of_orders_is_named():
    class Odd(Substitute):
        name = "odd"
        history = 1

        def predict(self, context, history):
            return Prediction(history[0].output, (1,))

    denoiser = CachedDenoiser(curve, Scripted({LEVELS[1]: True}), substitute=Odd())
    denoiser(noise(), LEVELS[0])
    with pytest.raises(PolicyError, match=r"'odd' gave order \(1,\); it is a tuple of 2"):
        denoiser(noise(), LEVELS[1])


def growing(x, t):
    """Row 0 grows in steps whose line leads out of the range seen; row 1 stays."""
    size = torch.tensor([{1000.0: 1.0, 950.0: 2.0}.get(t, 2.0), 1.0], dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return torch.ones_like(x) * size


@pytest.mark.parametrize("seen", [True, False], ids=["host", "accelerator"])
@pytest.mark.parametrize(("guard", "clipped"), [(1.4, True), (1.6, False), (None, False)])
def test_an_extrapolation_out_of_range_is_held_and_recorded(guard, clipped, seen, monkeypatch):
    """From 1 and 2 at equal steps the line leads to 3, which is 1.5 times the largest seen."""
    for module in VISIBLE:
        monkeypatch.setattr(f"{module}.visible", lambda tensor: seen)
    denoiser = CachedDenoiser(growing, Scripted({900.0: True}), substitute=Linear(time="t", guard=guard))
    outputs = walk(denoiser, noise(), LEVELS[:4])
    record = denoiser.trace.records[2]
    torch.testing.assert_close(outputs[2][0], torch.full(SHAPE, 2.0 if clipped else 3.0))
    assert torch.equal(outputs[2][1], torch.ones(SHAPE))
    assert record.clipped == (clipped, False)
    assert record.order == (1, 1)
    assert denoiser.trace.clipped == int(clipped)
    assert f"{int(clipped)} clipped" in denoiser.trace.summary()
    assert denoiser.trace.to_dict()["records"][2]["clipped"] == [clipped, False]
    assert joined([("a", denoiser.trace), ("b", denoiser.trace)]).clipped == 2 * clipped


def test_a_vanishing_extrapolation_is_held_too():
    """From 2 and 1 the line leads to 0: below the smallest by any factor."""

    def falling(x, t):
        return torch.ones_like(x) * {1000.0: 2.0}.get(t, 1.0)  # fmt: skip

    denoiser = CachedDenoiser(falling, Scripted({900.0: True}), substitute=Linear(time="t", guard=100.0))
    outputs = walk(denoiser, noise(), LEVELS[:3])
    assert torch.equal(outputs[2], torch.ones(2, *SHAPE))
    assert denoiser.trace.records[2].clipped == (True, True)


def test_the_range_is_of_the_row_and_of_the_run():
    """A large row does not widen the range of a small one, nor does an earlier run."""
    sizes = torch.tensor([1.0, 100.0]).reshape(2, 1, 1, 1)

    def model(x, t):
        return torch.ones_like(x) * (sizes[: x.shape[0]] if t < 990 else 0.5 * sizes[: x.shape[0]])

    def wild(x, t):
        return model(x, t) * 1000

    for first in (model, wild):
        now = [first]
        denoiser = CachedDenoiser(
            lambda x, t, now=now: now[0](x, t), Scripted({900.0: True}), substitute=Linear(time="t", guard=1.4)
        )
        walk(denoiser, noise(), LEVELS[:3])
        now[0] = model
        walk(denoiser, noise(), LEVELS[:3])
        assert denoiser.trace.records[2].clipped == (True, True)


@pytest.mark.parametrize("guard", [2.0, None])
def test_a_prediction_that_overflows_is_held(guard):
    def model(x, t):
        return torch.full_like(x, 30000.0 if t > 990 else 60000.0)

    denoiser = CachedDenoiser(model, Scripted({900.0: True}), substitute=Linear(time="t", guard=guard))
    outputs = walk(denoiser, noise().half(), LEVELS[:3])
    assert torch.equal(outputs[2], outputs[1])
    assert denoiser.trace.records[2].clipped == (True, True)


@pytest.mark.parametrize("seen", [True, False], ids=["host", "accelerator"])
@pytest.mark.parametrize("guard", [2.0, None])
def test_outputs_that_are_not_finite_reach_no_other_step(seen, guard, monkeypatch):
    """Row 0's second output is nan. On an accelerator nobody has seen it when the next step is extrapolated."""
    for module in VISIBLE:
        monkeypatch.setattr(f"{module}.visible", lambda tensor: seen)
    bad = LEVELS[1]

    def model(x, t):
        y = curve(x, t)
        if t == bad:
            y[0] = math.nan
        return y

    script = {t: k >= 2 and k % 2 == 0 for k, t in enumerate(LEVELS)}
    denoiser = CachedDenoiser(model, Scripted(script), substitute=Quadratic(time="t", guard=guard))
    for k, output in enumerate(walk(denoiser, noise())):
        assert torch.isfinite(output[1]).all()
        assert k == 1 or torch.isfinite(output[0]).all(), k


def test_a_first_output_that_is_not_finite_does_not_stay_in_the_history(monkeypatch):
    """With a policy that never reads, nobody drops it on an accelerator: the guard keeps it out of what follows."""
    for module in VISIBLE:
        monkeypatch.setattr(f"{module}.visible", lambda tensor: False)

    def model(x, t):
        return curve(x, t) * (math.inf if t == LEVELS[0] else 1.0)

    for guard in (2.0, None):
        script = {t: k >= 2 and k % 2 == 0 for k, t in enumerate(LEVELS)}
        denoiser = CachedDenoiser(model, Scripted(script), substitute=Linear(time="t", guard=guard))
        outputs = walk(denoiser, noise())
        assert all(torch.isfinite(output).all() for output in outputs[1:])
        assert denoiser.trace.records[2].clipped == (True, True)
        assert denoiser.trace.records[6].clipped == (False, False)


def test_without_a_scheduler_the_trace_says_that_t_is_used():
    denoiser = CachedDenoiser(curve, Scripted({LEVELS[1]: True}), substitute=Linear())
    walk(denoiser, noise(), LEVELS[:3])
    assert [note for note in denoiser.trace.notes if "extrapolates in t" in note]
    for silent in (Linear(scheduler="flow-euler"), Linear(time="t"), Hold()):
        denoiser = CachedDenoiser(curve, Scripted({LEVELS[1]: True}), substitute=silent)
        walk(denoiser, noise(), LEVELS[:6])
        assert not denoiser.trace.notes


def test_a_model_that_changes_its_dtype_starts_a_new_history():
    def model(x, t):
        return curve(x, t).double() if t < 990 else curve(x, t)

    denoiser = CachedDenoiser(model, Scripted({900.0: True, 800.0: True}), substitute=Linear(time="t"))
    outputs = walk(denoiser, noise(), LEVELS[:5])
    assert torch.equal(outputs[2], outputs[1])
    assert [record.order for record in denoiser.trace.records] == [None, None, (0, 0), None, (1, 1)]


def test_an_audit_sees_the_extrapolation():
    def straight(x, t):
        return torch.ones_like(x) * t / 1000

    script = {t: k >= 2 for k, t in enumerate(LEVELS)}
    for substitute, most in ((Hold(), 1.0), (Linear(time="t", guard=None), 1e-6)):
        denoiser = CachedDenoiser(straight, Scripted(script), substitute=substitute, audit=1.0)
        walk(denoiser, noise())
        worst = max(max(r.audit.true_error) for r in denoiser.trace.records if r.audit)
        assert worst <= most
        assert substitute.order or worst > 0.8


def test_linear_is_more_accurate_than_hold_on_the_mixture():
    x, model = noise(4, 3), mixture()
    bare = sample(model, "flow-euler", x, num_steps=50)
    errors = []
    for substitute in ("hold", "linear"):
        denoiser = CachedDenoiser(model, "uniform:every=2", substitute=substitute)
        errors.append((sample(denoiser, "flow-euler", x, num_steps=50) - bare).square().mean().sqrt().item())
        assert denoiser.nfe <= 26
    assert errors[1] < errors[0] / 4


# -- cost -----------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("branches", [("default",), ("cond", "uncond")])
def test_memory_is_order_plus_one_outputs_a_branch(substitute, branches):
    x = noise(4)
    denoiser = CachedDenoiser(Counted(curve), Scripted(pattern(1, 4)), substitute=substitute)
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS:
            for branch in branches:
                denoiser(x, t, branch=branch)
        latest = denoiser._requests.latest
        assert latest is not None
        assert latest.run is not None
        stores = latest.run.memory._stores
        assert stores.keys() == {(branch, "") for branch in branches}
        for store in stores.values():
            held = [refresh.output.untyped_storage() for refresh in store.history]
            assert len({storage.data_ptr() for storage in held}) == substitute.order + 1
            assert sum(s.nbytes() for s in held) == (substitute.order + 1) * x.untyped_storage().nbytes()
            sizes = store.sizes
            assert (sizes is None) == (substitute.guard is None)
            if sizes is not None:
                assert sizes.low.nbytes + sizes.high.nbytes == 2 * 4 * x.shape[0]
    assert denoiser._requests.latest is latest
    assert latest.run is None


@every
def test_no_synchronisation_is_added(substitute, monkeypatch):
    """Rows with histories of their own, guarded, on what the host cannot see: nothing is read before somebody looks."""
    for module in VISIBLE:
        monkeypatch.setattr(f"{module}.visible", lambda tensor: False)
    denoiser = CachedDenoiser(curve, Scripted(pattern(8, 2)), substitute=substitute)
    x = noise()
    walk(denoiser, x)  # tau of every level is computed once, from numbers that the host has
    with counting_reads(monkeypatch) as reads, counting_operators() as operators, denoiser.run(timesteps=LEVELS):
        for k, t in enumerate(LEVELS):
            denoiser(x * (1 - 0.01 * k), t)
        assert not reads
        assert not operators
    clipped = [record.clipped for record in denoiser.trace.records]
    seen = CachedDenoiser(curve, Scripted(pattern(8, 2)), substitute=substitute)
    monkeypatch.undo()
    walk(seen, x)
    assert [record.clipped for record in seen.trace.records] == clipped


def test_tau_is_looked_up_only_once(monkeypatch):
    substitute = Linear(scheduler="ddim")
    levels = [990.0 - 30.0 * k for k in range(30)]
    denoiser = CachedDenoiser(curve, Scripted({t: k % 2 == 1 for k, t in enumerate(levels)}), substitute=substitute)
    walk(denoiser, noise(), levels)
    monkeypatch.setattr(type(substitute.scheduler), "alpha", lambda self, t: 1 / 0)
    walk(denoiser, noise(), levels)


@frozen
class Twice(Extrapolation):
    """A third party's extrapolation of order 1 that returns a bare tensor."""

    name: str = "twice"
    order: int = 1
    guard: float | None = 1.5

    def coefficients(self, t, refreshes):
        return (1.0,)

    def predict(self, context, history):
        return history[0].output * 2


def test_the_guard_serves_third_parties():
    denoiser = CachedDenoiser(curve, Scripted({900.0: True}), substitute=Twice())
    outputs = walk(denoiser, noise(), LEVELS[:3])
    assert torch.equal(outputs[2], outputs[1])
    assert denoiser.trace.records[2].clipped == (True, True)
    assert denoiser.trace.records[2].order is None
    loose = CachedDenoiser(curve, Scripted({900.0: True}), substitute=Twice(guard=3.0))
    outputs = walk(loose, noise(), LEVELS[:3])
    assert torch.equal(outputs[2], outputs[1] * 2)


@pytest.mark.parametrize(
    "substitute", [Taylor(order=4, time="t"), Hermite(order=4, time="t")], ids=["taylor", "hermite"]
)
def test_high_orders_grow_into_their_history(substitute):
    script = {t: k % 2 == 1 for k, t in enumerate(LEVELS)}
    denoiser = CachedDenoiser(curve, Scripted(script), substitute=substitute)
    walk(denoiser, noise(), LEVELS[:12])
    orders = [record.order for record in denoiser.trace.records[1::2]]
    assert [order[0] for order in orders if order is not None] == [0, 1, 2, 3, 4, 4]


@frozen
class OfOthers(Substitute):
    """Hold, and note what the other branches returned at the same step."""

    name = "of-others"
    seen: list[tuple[float, str, tuple[str, ...]]]

    @property
    def history(self) -> int:
        return 1

    @property
    def wants_branches(self) -> bool:
        return True

    def predict(self, context, history):
        self.seen.append((context.t, context.branch, tuple(sorted(context.branches))))
        return history[0].output


def test_a_substitute_sees_the_other_branches_of_its_own_step_only():
    substitute = OfOthers([])
    levels = (900.0, 800.0, 700.0)
    script = {800.0: True, 700.0: True}
    denoiser = CachedDenoiser(lambda x, t: x * t, Scripted(script), substitute=substitute)
    with denoiser.run(timesteps=levels):
        for t in levels:
            denoiser(noise(), t, branch="cond")
            denoiser(noise(), t, branch="uncond")
    assert substitute.seen == [
        (800.0, "cond", ()),
        (800.0, "uncond", ("cond",)),
        (700.0, "cond", ()),
        (700.0, "uncond", ("cond",)),
    ]


def test_rows_that_part_keep_their_own_inputs():
    """``residual`` adds what went in when a row was evaluated, not what went in for another row."""
    script = {900.0: [False] * 3, 800.0: [True, True, False], 700.0: [True, False, True], 600.0: [True] * 3}
    denoiser = CachedDenoiser(lambda x, t: x * x + t, Scripted(script), substitute="residual")
    latents = {t: torch.arange(1.0, 4.0)[:, None] * t for t in script}
    with denoiser.run(timesteps=tuple(script)):
        outputs = {t: denoiser(latents[t], t) for t in script}
    for row, refreshed in enumerate((900.0, 700.0, 800.0)):
        then = latents[refreshed][row]
        expected = latents[600.0][row] + (then * then + refreshed - then)
        assert torch.allclose(outputs[600.0][row], expected)

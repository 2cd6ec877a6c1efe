"""Every method against a computation by hand on a small transformer, and what each promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cachepolicies import (
    Adapter,
    CachedDenoiser,
    CacheWarning,
    Context,
    InputError,
    NeedsError,
    Refresh,
    SettingsError,
    Setup,
    Substitute,
    as_scheduler,
    sample,
)
from cachepolicies.adapters import Blocks
from cachepolicies.policies import Schedule
from cachepolicies.reference.guided import GuidedDenoiser
from cachepolicies.substitutes import Prediction, Taylor, as_substitute
from cachepolicies.testing import Check, parametrize_with_checks, policy_checks, registered, substitute_checks
from cachepolicies_drafts import (
    Aligned,
    Bands,
    DBCache,
    DiCache,
    FirstBlock,
    FoCa,
    FoCaCache,
    FreqCa,
    MeanCache,
    MeanVelocity,
    SpeCa,
    plugin,
)
from cachepolicies_drafts.bands import low_band

STEPS = 14
TIMESTEPS = tuple(1000.0 - 70.0 * k for k in range(STEPS))
DEPTH = 4
ENDS = "blocks[:-1]+blocks[-1:]"


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's names."""
    with registered(plugin, "cachepolicies-drafts"):
        yield


class Block(nn.Module):
    """One layer with a residual; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.calls = 0

    def forward(self, hidden_states: Tensor, level: float) -> Tensor:
        """Add what the layer says."""
        self.calls += 1
        return hidden_states + torch.tanh(self.layer(hidden_states) + level)


class Network(nn.Module):
    """Four blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block() for _ in range(DEPTH)])
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Any) -> Tensor:
        """Return a velocity."""
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden, float(t) / 1000)
        output: Tensor = self.head(hidden)
        return output


def sampled(denoiser: Any, x: Tensor) -> list[Tensor]:
    """Return the latents of a run."""
    latents = []
    for t, after in pairwise((*TIMESTEPS, 0.0)):
        x = x + (after - t) / 1000 * denoiser(x, t)
        latents.append(x)
    return latents


def latent(rows: int = 2) -> Tensor:
    """Return noise."""
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


@parametrize_with_checks(
    [
        policy_checks(FirstBlock(), signals=("prefix",)),
        policy_checks(DBCache(warm_up=0), signals=("prefix",)),
        policy_checks(DBCache(warm_up=2, most=4, in_a_row=2), signals=("prefix",), label="dbcache-limits"),
        policy_checks(DiCache(), signals=("probe",)),
        policy_checks(SpeCa(), site=ENDS),
        policy_checks(SpeCa(base=0.0, floor=0.4, unverified=0, most=3, warm_up=1), site=ENDS, label="speca-strict"),
        policy_checks(FoCaCache(every=2, first=2), substitute=FoCa()),
        policy_checks(FreqCa(every=3, first=1, last=1), substitute=Bands()),
        policy_checks(MeanCache(plan=(0, 2)), substitute=MeanVelocity(unit=1000.0)),
        substitute_checks(Aligned()),
        substitute_checks(Bands()),
        substitute_checks(Bands(low=FoCa(), high="residual"), label="bands-of-others"),
        substitute_checks(FoCa()),
        substitute_checks(FoCa(slope="step", horizon=None, guard=None), label="foca-per-step"),
        substitute_checks(MeanVelocity(windows=((3, 6),)), scheduler="flow-euler"),
    ]
)
def test_the_contracts(check: Check) -> None:
    """One line each."""
    check()


class ByHand:
    """A run of the network in which blocks ``first`` to ``last`` may be left out, and what was seen of it."""

    def __init__(self, network: Network, first: int, last: int) -> None:
        self.network, self.first, self.last = network, first, last
        self.computed: list[int] = []

    def run(self, x: Tensor, rule: Any, stand_in: Any) -> list[Tensor]:
        """Return the latents; the rule says at each step whether the blocks run, the stand-in what they add if not."""
        latents = []
        for step, (t, after) in enumerate(pairwise((*TIMESTEPS, 0.0))):
            entered = self.network.embed(x)
            hidden = entered
            for block in self.network.blocks[: self.first]:
                hidden = block(hidden, t / 1000)
            probe = hidden
            if rule(step, probe, probe - entered):
                self.computed.append(step)
                for block in self.network.blocks[self.first : self.last]:
                    hidden = block(hidden, t / 1000)
                stand_in.note(hidden - probe, probe - entered)
            else:
                hidden = probe + stand_in(probe - entered)
            for block in self.network.blocks[self.last :]:
                hidden = block(hidden, t / 1000)
            x = x + (after - t) / 1000 * self.network.head(hidden)
            latents.append(x)
        return latents


class Held:
    """What the blocks added last."""

    def note(self, added: Tensor, prefix: Tensor) -> None:
        """Note it."""
        self.added = added

    def __call__(self, prefix: Tensor) -> Tensor:
        """Return it."""
        return self.added


class Extended:
    """DiCache's combination of the last two residuals."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def note(self, added: Tensor, prefix: Tensor) -> None:
        """Note both."""
        self.seen.append((added + prefix, prefix))

    def __call__(self, prefix: Tensor) -> Tensor:
        """Return what is added behind the prefix."""
        (newest, p1), *older = self.seen[::-1][:2]
        if not older:
            return newest - prefix
        ((oldest, p2),) = older
        ratios = (prefix - p2).abs().mean(1, keepdim=True) / (p1 - p2).abs().mean(1, keepdim=True)
        return oldest + ratios.clamp(1, 2) * (newest - oldest) - prefix


def change(now: Tensor, before: Tensor) -> float:
    """Return how far it has moved, relative to what it was, over the whole batch."""
    return float((now - before).abs().mean() / before.abs().mean())


def checked(policy: Any, rule: Any, first: int, last: int, stand_in: Any, substitute: Any = None) -> list[int]:
    """Compare a run with the one by hand, count the blocks' calls, and return the steps that were computed."""
    network = Network()
    hand = ByHand(network, first, last)
    wanted = hand.run(latent(), rule, stand_in)
    for block in network.blocks:
        block.calls = 0  # type: ignore[assignment]
    denoiser = CachedDenoiser(network, policy, substitute=substitute)
    with denoiser.run(timesteps=TIMESTEPS) as run:
        found = sampled(denoiser, latent())
    assert [record.index for record in run.trace.records if all(record.evaluated)] == hand.computed
    calls = [STEPS if not first <= number < last else len(hand.computed) for number in range(DEPTH)]
    assert [block.calls for block in network.blocks] == calls  # no block runs twice
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert 1 < len(hand.computed) < STEPS
    return hand.computed


def test_first_block_compares_with_the_last_computed_step() -> None:
    """The others are computed where the first block's addition has moved by more than the threshold."""
    seen: list[Tensor] = []

    def rule(step: int, probe: Tensor, prefix: Tensor) -> bool:
        if seen and change(prefix, seen[-1]) <= 0.1:
            return False
        seen.append(prefix)
        return True

    checked(FirstBlock(threshold=0.1), rule, 1, DEPTH, Held())


@pytest.mark.parametrize(("first", "last"), [(1, 0), (1, 1), (2, 1)])
def test_dbcache_runs_the_ends_and_warms_up(first: int, last: int) -> None:
    """Three steps of warm-up, at most two reuses in a row."""
    seen: list[Tensor] = []
    row = [0]

    def rule(step: int, probe: Tensor, prefix: Tensor) -> bool:
        if step >= 3 and change(prefix, seen[-1]) < 0.3 and row[0] < 2:
            row[0] += 1
            return False
        seen.append(prefix)
        row[0] = 0
        return True

    policy = DBCache(first=first, last=last, threshold=0.3, warm_up=3, in_a_row=2)
    computed = checked(policy, rule, first, DEPTH - last, Held())
    assert computed[:3] == [0, 1, 2]


def test_dbcache_reuses_no_more_than_it_may() -> None:
    """Four reuses in a run."""
    network = Network()
    denoiser = CachedDenoiser(network, DBCache(first=1, threshold=10.0, warm_up=1, most=4))
    with denoiser.run(timesteps=TIMESTEPS) as run:
        sampled(denoiser, latent())
    assert run.trace.nfe == STEPS - 4


@pytest.mark.parametrize("substitute", ["hold", "aligned"])
def test_dicache_sums_up_the_changes_of_its_probe(substitute: str) -> None:
    """A step's change is that against the step before; the first fifth is computed."""
    before: list[Tensor] = []
    summed = [0.0]

    def rule(step: int, probe: Tensor, prefix: Tensor) -> bool:
        moved = change(probe, before[-1]) if before else 0.0
        before.append(probe)
        summed[0] += moved
        if step >= round(0.2 * STEPS) and summed[0] < 0.12:
            return False
        summed[0] = 0.0
        return True

    checked(DiCache(threshold=0.12), rule, 1, DEPTH, Held() if substitute == "hold" else Extended(), substitute)


def test_a_site_without_blocks_in_front_is_refused() -> None:
    """There is nothing to look at."""
    with pytest.raises(NeedsError, match="needs the signal prefix"):
        CachedDenoiser(Network(), FirstBlock(), site="blocks")


class Drafted:
    """SpeCa in a plain loop, with a line through the last two computed steps."""

    def __init__(self, network: Network, rule: SpeCa) -> None:
        self.network, self.rule = network, rule
        self.done: list[str] = []
        self.errors: list[tuple[float, float]] = []

    def run(self, x: Tensor) -> list[Tensor]:
        """Return the latents."""
        rule, cut = self.rule, DEPTH - self.rule.last
        seen: list[tuple[int, Tensor, Tensor]] = []
        latents, drafted, rejected = [], 0, False
        for step, (t, after) in enumerate(pairwise((*TIMESTEPS, 0.0))):
            entered = hidden = self.network.embed(x)
            if step < rule.warm_up or rejected or drafted >= rule.most:
                drafted, rejected = 0, False
                middle = self.blocks(hidden, t, 0, cut)
                hidden = self.blocks(middle, t, cut, DEPTH)
                seen = [(step, middle - entered, hidden - middle), *seen][:2]
                self.done.append("full")
            else:
                drafted += 1
                middle = entered + self.forecast(step, [(at, front) for at, front, _ in seen])
                hidden = middle + self.forecast(step, [(at, rear) for at, _, rear in seen])
                self.done.append("drafted")
                if drafted > rule.unverified:
                    self.done[-1] = "verified"
                    computed = self.blocks(middle, t, cut, DEPTH)
                    error = float(((hidden - computed).abs() / (computed.abs() + 1e-10)).mean())
                    limit = max(rule.base * rule.decay ** (step / STEPS), rule.floor)
                    self.errors.append((error, limit))
                    rejected = error > limit
            x = x + (after - t) / 1000 * self.network.head(hidden)
            latents.append(x)
        return latents

    def blocks(self, hidden: Tensor, t: float, start: int, stop: int) -> Tensor:
        """Run some blocks."""
        for block in self.network.blocks[start:stop]:
            hidden = block(hidden, t / 1000)
        return hidden

    @staticmethod
    def forecast(step: int, seen: list[tuple[int, Tensor]]) -> Tensor:
        """Continue the line."""
        (newest, now), *older = seen
        if not older:
            return now
        ((before, then),) = older
        return now + (step - newest) * (now - then) / (newest - before)


def made_up(seed: int) -> Network:
    """Return a network whose blocks bend what flows through more or less."""
    network = Network()
    generator = torch.Generator().manual_seed(seed)
    for block in network.blocks:
        layer: Any = block.layer
        layer.weight.copy_(torch.randn(6, 6, generator=generator) * (0.2 + torch.rand((), generator=generator)))
    return network


@settings(max_examples=30, deadline=None)
@given(
    rule=st.builds(
        SpeCa,
        base=st.floats(0.0, 2.0),
        decay=st.floats(0.01, 1.0),
        floor=st.floats(0.0, 0.5),
        unverified=st.integers(0, 4),
        most=st.integers(1, 6),
        warm_up=st.integers(1, 4),
        last=st.integers(1, 3),
    ),
    seed=st.integers(0, 1000),
)
def test_a_draft_is_accepted_up_to_its_limit(rule: SpeCa, seed: int) -> None:
    """Whatever the network: drafts, checks and computed steps, latents and blocks run are those of the plain loop."""
    network = made_up(seed)
    hand = Drafted(network, rule)
    wanted = hand.run(latent())
    assume(all(abs(error - limit) > 1e-3 * limit + 1e-5 for error, limit in hand.errors))
    for block in network.blocks:
        block.calls = 0  # type: ignore[assignment]
    draft = Taylor(order=1, differences="taylorseer", time="index", guard=None)
    denoiser = CachedDenoiser(network, rule, substitute=draft)
    with denoiser.run(timesteps=TIMESTEPS) as run:
        found = sampled(denoiser, latent())
    records = [record for record in run.trace.records if record.place == run.trace.places[-1]]
    done = ["full" if r.evaluated[0] else "verified" if r.verified else "drafted" for r in records]
    assert done == hand.done
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    full, verified = done.count("full"), done.count("verified")
    calls = [full + verified if number >= DEPTH - rule.last else full for number in range(DEPTH)]
    assert [block.calls for block in network.blocks] == calls
    for before, after in pairwise(range(STEPS)):
        if done[before] == "verified":
            error, limit = hand.errors[done[: before + 1].count("verified") - 1]
            assert (error <= limit) or done[after] == "full"


def test_the_work_of_a_check_is_counted_and_changes_nothing() -> None:
    """A verified step costs its last block, and gives what an unverified one gives."""
    network = Network()
    outputs, works = [], []
    for unverified in (0, 8):
        rule = SpeCa(base=1e9, unverified=unverified, most=4, warm_up=2)
        denoiser = CachedDenoiser(network, rule)
        with denoiser.run(timesteps=TIMESTEPS) as run:
            outputs.append(sampled(denoiser, latent()))
        works.append((run.trace.work, run.trace.verified_calls))
        assert str(run.trace).count("?") == run.trace.verified_calls
        assert sum(entry["verified"] for entry in run.trace.to_dict()["records"]) == run.trace.verified_calls
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    (checked, times), (plain, none) = works
    assert checked is not None
    assert plain is not None
    assert none == 0
    assert times == 10
    block = 2 * 6 * 6  # FLOPs a row; embedding and head cost as much as a block
    assert checked - plain == pytest.approx(times / STEPS * block / ((DEPTH + 2) * block))


def test_what_speca_cannot_work_with_is_named() -> None:
    """A site without a rear; settings that are none."""
    with pytest.raises(
        NeedsError, match=r"site 'blocks\[1:\]' has one place for all; leave the site out, or use site="
    ):
        CachedDenoiser(Network(), SpeCa(), site="blocks[1:]")
    for wrong in ({"decay": 0.0}, {"decay": 1.5}, {"base": -1.0}, {"warm_up": 0}, {"last": 0}, {"most": -1}):
        with pytest.raises((ValueError, TypeError)):
            SpeCa(**wrong)


# -- FoCa -----------------------------------------------------------------------------------------------------------


class Script:
    """A denoiser that returns what is written down for every step."""

    def __init__(self, outputs: list[Tensor]) -> None:
        self.outputs = outputs

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        """Return the output of the step at t."""
        return self.outputs[TIMESTEPS.index(float(t))].clone()


def handed_out(outputs: list[Tensor], policy: Any, substitute: Any = None) -> tuple[list[Tensor], list[bool]]:
    """Return what a cached denoiser hands out at every step, and where it evaluated."""
    denoiser = CachedDenoiser(Script(outputs), policy, substitute=substitute, site="output")
    with denoiser.run(timesteps=TIMESTEPS) as run:
        found = [denoiser(torch.zeros_like(outputs[0]), t).clone() for t in TIMESTEPS]
    return found, [all(record.evaluated) for record in run.trace.records]


@settings(max_examples=20, deadline=None)
@given(
    every=st.integers(2, 6),
    first=st.integers(1, 4),
    horizon=st.sampled_from((None, 2.0, 3.0)),
    slope=st.sampled_from(("difference", "step")),
    seed=st.integers(0, 100),
)
def test_foca_is_its_recursion(every: int, first: int, horizon: float | None, slope: Any, seed: int) -> None:
    """Step by step in float64: predictor on the last two values, corrector from the last evaluation."""
    outputs = list(torch.randn(STEPS, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    substitute = FoCa(horizon=horizon, slope=slope, guard=None)
    found, computed = handed_out(outputs, FoCaCache(every=every, first=first), substitute)
    values: list[Tensor] = []
    full: list[int] = []
    for step, output in enumerate(outputs):
        if computed[step]:
            full.append(step)
            values.append(output)
        elif len(full) < 2:
            values.append(outputs[full[-1]])
        else:
            ahead = step - full[-1]
            predicted = 2 * values[-1] - values[-2]
            slopes = outputs[full[-1]] - outputs[full[-2]] + predicted - values[-1]
            if slope == "step":
                slopes = (outputs[full[-1]] - outputs[full[-2]]) / (full[-1] - full[-2]) + predicted - values[-1]
            reach = ahead if horizon is None or ahead <= horizon else horizon / ahead * horizon
            values.append(outputs[full[-1]] + reach / 2 * slopes)
        torch.testing.assert_close(found[step], values[-1])
    assert sum(computed) < STEPS


@settings(max_examples=10, deadline=None)
@given(every=st.integers(2, 6), seed=st.integers(0, 100))
def test_foca_by_the_slope_of_a_step_continues_a_line(every: int, seed: int) -> None:
    """Without damping, from the second evaluation on; with the published slope it does not."""
    start, slope = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outputs = [start + step * slope for step in range(STEPS)]
    policy = FoCaCache(every=every, first=2)
    exact, _ = handed_out(outputs, policy, FoCa(horizon=None, slope="step", guard=None))
    torch.testing.assert_close(torch.stack(exact), torch.stack(outputs))
    published, _ = handed_out(outputs, policy, FoCa(horizon=None, guard=None))
    assert not torch.allclose(torch.stack(published), torch.stack(outputs))


def test_foca_is_what_its_policy_brings() -> None:
    """Where nobody names a substitute; one that is named is taken."""
    assert FoCaCache().stand_in == as_substitute("foca")
    assert FreqCa().stand_in == as_substitute("bands:low=hold,high=hermite")
    outputs = list(torch.randn(STEPS, 1, 4, generator=torch.Generator().manual_seed(0)))
    policy = FoCaCache(every=3, first=2)
    brought, named, held = (handed_out(outputs, policy, each)[0] for each in (None, FoCa(), "hold"))
    assert all(map(torch.equal, brought, named))
    assert not all(map(torch.equal, brought, held))


def test_foca_holds_where_a_forecast_grows_beyond_what_was_seen() -> None:
    """The guard of the engine."""
    outputs = [torch.full((1, 4), 2.0**step) for step in range(STEPS)]
    found, computed = handed_out(outputs, FoCaCache(every=6, first=2), FoCa(horizon=None))
    assert torch.equal(found[6], outputs[1])
    assert not computed[6]


def test_foca_needs_what_has_passed() -> None:
    """Outside of an engine it says so."""
    with pytest.raises(NeedsError, match="own forecasts"):
        FoCa().predict(Context(1.0), [Refresh(torch.zeros(1, 2), [2.0], [True], [0])])


# -- Bands ----------------------------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(4, 6), (5, 3), (1, 7), (2, 4, 3), (8,)])
LINEAR = st.sampled_from(["hold", "linear:guard=None", "hermite:guard=None", "quadratic:time=t,guard=None", "foca"])
CUTOFFS = st.sampled_from([0.0, 0.2, 0.3, 0.7, 1.0])


def remembered(shape: tuple[int, ...], count: int, seed: int, rows: int = 2) -> list[Refresh]:
    """Return evaluations of latents ``(B, C, *axes)``, newest first."""
    made = torch.randn(count, rows, 3, *shape, generator=torch.Generator().manual_seed(seed))
    times = [100.0 * (age + 1) for age in range(count)]
    return [Refresh(one, [t] * rows, [True] * rows, [0] * rows) for one, t in zip(made, times, strict=True)]


def present(history: list[Refresh]) -> Context:
    """Return the present: what has flowed on are the evaluations."""
    return Context(0.0, visited=tuple(each.t[0] for each in history), passed=tuple(each.output for each in history[:2]))


def output_of(substitute: Substitute, history: list[Refresh], context: Context | None = None) -> Tensor:
    """Return what stands in."""
    predicted = substitute.predict(present(history) if context is None else context, history[: substitute.history])
    return predicted.output if isinstance(predicted, Prediction) else predicted


def low_by_sums(values: Tensor, cutoff: float) -> Tensor:
    """Return the low band of ``(B, C, *axes)`` by the sums that define the transform, in float64."""
    found = values.to(torch.complex128)
    sizes = values.shape[2:]
    squares = torch.zeros((), dtype=torch.float64)
    for axis, size in enumerate(sizes):
        numbers = torch.arange(size, dtype=torch.float64)
        matrix = torch.exp(-2j * torch.pi * torch.outer(numbers, numbers) / size)
        found = torch.tensordot(found, matrix, dims=([axis + 2], [1])).movedim(-1, axis + 2)
        nearest = torch.minimum(numbers, size - numbers) / size
        squares = squares + (2 * nearest).square().reshape(-1, *[1] * (len(sizes) - 1 - axis))
    count = max(sum(size > 1 for size in sizes), 1)
    found = found * ((squares / count).sqrt() <= cutoff + 1e-9)
    for axis, size in enumerate(sizes):
        numbers = torch.arange(size, dtype=torch.float64)
        matrix = torch.exp(2j * torch.pi * torch.outer(numbers, numbers) / size) / size
        found = torch.tensordot(found, matrix, dims=([axis + 2], [1])).movedim(-1, axis + 2)
    return found.real


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, cutoff=CUTOFFS, seed=st.integers(0, 100))
def test_the_low_band_is_what_the_sums_say(shape: tuple[int, ...], cutoff: float, seed: int) -> None:
    """Taken twice it is itself; 0 leaves the mean and 1 everything, and at the same time of the rest nothing."""
    values = remembered(shape, 1, seed)[0].output.double()
    axes = tuple(range(2, values.ndim))
    low = low_band(values, axes, cutoff)
    torch.testing.assert_close(low, low_by_sums(values, cutoff))
    torch.testing.assert_close(low_band(low, axes, cutoff), low)
    torch.testing.assert_close(low_band(values - low, axes, cutoff), torch.zeros_like(values))
    if cutoff == 0.0:
        torch.testing.assert_close(low, values.mean(axes, keepdim=True).expand_as(values))
    if cutoff == 1.0:
        torch.testing.assert_close(low, values)


@settings(max_examples=30, deadline=None)
@given(low=LINEAR, high=LINEAR, shape=SHAPES, cutoff=CUTOFFS, count=st.integers(1, 3), seed=st.integers(0, 100))
def test_bands_split_what_is_remembered(
    low: str, high: str, shape: tuple[int, ...], cutoff: float, count: int, seed: int
) -> None:
    """Each band of all that is remembered goes to its own substitute, and the two stand-ins are added.

    With the same substitute in both, that is the substitute, and bit for bit where it holds.
    """
    history = remembered(shape, count, seed)
    made = output_of(Bands(low=low, high=high, cutoff=cutoff), history)
    axes = tuple(range(2, made.ndim))
    parts = []
    for spec, is_low in ((low, True), (high, False)):
        split = []
        for each in history:
            band = low_band(each.output.double(), axes, cutoff)
            split.append(Refresh(band if is_low else each.output.double() - band, each.t, each.filled, each.point))
        parts.append(output_of(as_substitute(spec), split))
    torch.testing.assert_close(made.double(), parts[0] + parts[1], rtol=1e-4, atol=1e-4)
    if low == high:
        torch.testing.assert_close(made, output_of(as_substitute(low), history), rtol=1e-5, atol=1e-5)
        assert low != "hold" or torch.equal(made, history[0].output)
    both = [output_of(Bands(low=one, high=other, cutoff=cutoff), history) for one, other in ((low, high), (high, low))]
    whole = output_of(as_substitute(low), history) + output_of(as_substitute(high), history)
    torch.testing.assert_close(both[0] + both[1], whole, rtol=1e-4, atol=1e-4)


def test_bands_take_tokens_back_onto_their_grid() -> None:
    """Tokens in rows are what a latent with their axes is."""
    history = remembered((4, 6), 3, 0)
    tokens = [Refresh(each.output.flatten(2).mT, each.t, each.filled, each.point) for each in history]
    latent = output_of(Bands(), history)
    assert torch.equal(output_of(Bands(grid=(4, 6)), history), latent)
    torch.testing.assert_close(output_of(Bands(grid=(4, 6)), tokens), latent.flatten(2).mT)
    assert not torch.allclose(output_of(Bands(grid=(6, 4)), tokens), latent.flatten(2).mT, atol=1e-3)
    with pytest.raises(InputError, match=r"grid of 5 x 5 tokens.*shape \(2, 24, 3\)"):
        output_of(Bands(grid=(5, 5)), tokens)


def test_bands_have_the_order_and_the_guard_of_both() -> None:
    """The higher order, the narrower guard, and one that has none has none."""
    history = remembered((4, 4), 3, 0)
    predicted = Bands(low="hold", high="linear").predict(present(history), history)
    assert isinstance(predicted, Prediction)
    assert predicted.order == (1, 1)
    assert isinstance(Bands(high=FoCa()).predict(present(history), history), Tensor)
    assert Bands(low="linear:guard=3", high="linear:guard=1.5").guard == 1.5
    assert Bands(low="hold", high="linear:guard=None").guard is None


def test_bands_where_nothing_says_the_grid() -> None:
    """Refused at set-up inside a network; settings that make no sense too."""
    with pytest.raises(NeedsError, match=r"on which grid the tokens of Network lie is not known; give grid="):
        CachedDenoiser(Network(), FreqCa())
    with pytest.raises(SettingsError, match=r"grid is \(0, 3\)"):
        Bands(grid=(0, 3))
    with pytest.raises(SettingsError, match="corrects evaluations"):
        Bands(low="linear:correct=0.8")


def test_freqca_computes_the_first_steps_and_every_nth() -> None:
    """And the last ones; another network's grid is given."""
    denoiser = CachedDenoiser(Script(list(torch.zeros(STEPS, 1, 2))), FreqCa(every=4, first=3, last=2), site="output")
    with denoiser.run(timesteps=TIMESTEPS) as run:
        for t in TIMESTEPS:
            denoiser(torch.zeros(1, 2), t)
    assert [record.index for record in run.trace.records if all(record.evaluated)] == [0, 1, 2, 6, 10, 12, 13]


# -- MeanCache ------------------------------------------------------------------------------------------------------

PLAN, WINDOWS = (0, 1, 3, 4, 7, 12), (2, 2, 1, 3, 6, 2)
"""Steps to compute, and how far back each of the edges behind them looks."""


def mean_velocity_by_hand(velocity: Any, x: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """Return the latents of a run that keeps a log of every step: time, latent and velocity, predicted or not."""
    log: list[tuple[float, Tensor, Tensor]] = []
    latents = []
    for step, (s, after) in enumerate(pairwise((*levels, 0.0))):
        if step in PLAN:
            v = velocity(x, s)
        else:
            edge = max(number for number, start in enumerate(PLAN) if start < step)
            s0, x0, v0 = log[-WINDOWS[edge] :][0]
            mean = (x - x0) / (s - s0)
            v = log[-1][2] - (v0 - mean) / (s - s0) * (after - s)
        log.append((s, x, v))
        x = x + (after - s) * v
        latents.append(x)
    return latents


@pytest.mark.parametrize("unit", [1.0, 1000.0, -1000.0])
def test_meancache_is_its_formulas(unit: float) -> None:
    """With K an edge, and fewer at the start; t may be s, or 1000 s, and the velocity may point to the data."""
    levels = tuple(1.0 - (step / STEPS) ** 1.3 for step in range(STEPS))
    network, sign = Network(), 1.0 if unit > 0 else -1.0

    def velocity(x: Tensor, s: float) -> Tensor:
        found: Tensor = network(x, 1000 * s)
        return found

    def denoiser(x: Tensor, t: float) -> Tensor:
        return sign * velocity(x, float(t) / abs(unit))

    wanted = mean_velocity_by_hand(velocity, latent(), levels)
    policy = MeanCache(plan=PLAN, window=WINDOWS)
    own = policy.substitute
    cached = CachedDenoiser(denoiser, policy, substitute=MeanVelocity(own.window, own.windows, unit))
    timesteps = [abs(unit) * level for level in levels]
    with cached.run(timesteps=timesteps) as run:
        x, found = latent(), []
        for level, (t, after) in zip(levels, pairwise((*timesteps, 0.0)), strict=True):
            assert t == abs(unit) * level
            x = x + (after - t) / unit * cached(x, t)
            found.append(x)
    assert [record.index for record in run.trace.records if all(record.evaluated)] == list(PLAN)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class Conditioned(Network):
    """The same, for one level a row, with a condition that is added."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor, return_dict: bool = False) -> tuple[Tensor]:  # type: ignore[override]
        """Return a velocity."""
        assert not return_dict
        return (super().forward(x + text, t[0]),)


def test_meancache_cuts_the_guided_velocity() -> None:
    """A denoiser that guides inside is cut behind its guidance; where all is computed, it is the bare one."""
    guided = GuidedDenoiser(Conditioned(), 3.0, argument="text", null=lambda rows: torch.zeros(rows, 6))
    noise, text = latent(), latent().flip(1)
    levels = [t / 1000 for t in as_scheduler("flow-euler").timesteps(STEPS)]

    def velocity(x: Tensor, s: float) -> Tensor:
        return guided(x, torch.full((2,), 1000 * s), text)

    cached = CachedDenoiser(guided, MeanCache(plan=PLAN, window=WINDOWS), scheduler="flow-euler")
    assert cached.substitute == MeanVelocity(2, tuple(zip(PLAN, WINDOWS, strict=True)), 1000.0)
    found = sample(cached, "flow-euler", noise, text, num_steps=STEPS)
    torch.testing.assert_close(found, mean_velocity_by_hand(velocity, noise, levels)[-1], atol=1e-5, rtol=1e-4)
    assert cached.trace.nfe == len(PLAN)
    everything = CachedDenoiser(guided, MeanCache(plan=tuple(range(STEPS))), scheduler="flow-euler")
    with pytest.warns(CacheWarning, match="nothing was reused"):
        same = sample(everything, "flow-euler", noise, text, num_steps=STEPS)
    assert torch.equal(same, sample(guided, "flow-euler", noise, text, num_steps=STEPS))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.floats(0.02, 0.3), min_size=3, max_size=9),
    window=st.integers(1, 6),
    seed=st.integers(0, 100),
)
def test_a_velocity_that_is_linear_along_the_path_is_continued_exactly(
    steps: list[float], window: int, seed: int
) -> None:
    """-J is half the slope, so that the mean over a step of the coming length from the last point comes out."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 2, 5, generator=generator, dtype=torch.float64)
    scale = 1.0 / sum(steps)
    levels = [1.0]
    for length in steps:
        levels.append(levels[-1] - scale * length)

    def path(s: float) -> Tensor:
        found: Tensor = a * s + b * s * s / 2
        return found

    now, after = levels[-2], levels[-1]
    before = levels[-3::-1]
    velocities, latents = tuple(a + b * s for s in before[:window]), tuple(path(s) for s in before[:window])
    context = Context(
        now,
        input=path(now),
        index=len(levels) - 2,
        timesteps=tuple(levels),
        visited=tuple(before),
        passed=velocities,
        entered=latents,
    )
    last_refresh = Refresh(velocities[-1], [1.0] * 2, [True] * 2, [1] * 2, latents[-1])
    found = MeanVelocity(window, unit=1.0).predict(context, [last_refresh])
    last, ahead = levels[-3], after - now
    mean = (path(last + ahead) - path(last)) / ahead
    torch.testing.assert_close(found, mean, atol=1e-8, rtol=1e-8)


def test_one_step_back_is_to_hold() -> None:
    """Under Euler, whose mean velocity of one step is the velocity itself."""
    network = Network()
    runs = []
    for policy in (MeanCache(plan=PLAN, window=1), Schedule(refreshes=PLAN)):
        denoiser = CachedDenoiser(network, policy, scheduler="flow-euler")
        with denoiser.run(timesteps=TIMESTEPS):
            runs.append(sampled(denoiser, latent()))
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_second_evaluation_at_a_level_has_no_path() -> None:
    """Its velocity is held; and outside of an engine nothing is known of the path."""
    x, velocity = latent(), latent().flip(1)
    refresh = Refresh(velocity, [500.0] * 2, [True] * 2, [1] * 2, x)
    there = Context(500.0, input=x, visited=(500.0,), passed=(velocity,), entered=(x,))
    assert torch.equal(MeanVelocity(unit=1000.0).predict(there, [refresh]), velocity)
    with pytest.raises(NeedsError, match="continues its own velocities"):
        MeanVelocity(unit=1000.0).predict(Context(400.0, input=x), [refresh])


def test_the_published_plans() -> None:
    """So many steps of 50, the first and the last among them."""
    for count in (10, 17, 25):
        steps = MeanCache(plan=count).steps
        assert len(steps) == count
        assert (steps[0], steps[-1]) == (0, 49)
    denoiser = CachedDenoiser(Network(), "meancache:plan=25", scheduler="flow-euler")
    with (
        pytest.raises(SettingsError, match="published plans are for 50 steps, and the run has 14"),
        denoiser.run(timesteps=TIMESTEPS),
    ):
        denoiser(latent(), TIMESTEPS[0])


def test_what_meancache_cannot_do_is_refused() -> None:
    """Another stand-in, another site, another kind of prediction, no time, units that do not fit, other channels."""
    network = Network()
    with pytest.raises(SettingsError, match="goes with the substitute 'meanvelocity', and 'hold' was given"):
        CachedDenoiser(network, MeanCache(), substitute="hold")
    with pytest.raises(SettingsError, match="site 'blocks' is inside of the network"):
        CachedDenoiser(network, MeanCache(), site="blocks", scheduler="flow-euler")
    with pytest.raises(NeedsError, match="no scheduler says in which time"):
        CachedDenoiser(network, MeanCache())
    with pytest.raises(NeedsError, match=r"with scheduler 'ddim' .*predicts 'noise'"):
        CachedDenoiser(network, MeanCache(), scheduler="ddim")
    for unit, levels in ((1.0, TIMESTEPS), (1000.0, tuple(t / 1000 for t in TIMESTEPS))):
        denoiser = CachedDenoiser(network, MeanCache(plan=(0, 2)), substitute=MeanVelocity(unit=unit))
        with denoiser.run(timesteps=levels):
            denoiser(latent(), levels[0])
            with pytest.raises(SettingsError, match="one unit of s is taken to be"):
                denoiser(latent(), levels[1])
    wide = CachedDenoiser(lambda x, t: x[:, :3], MeanCache(plan=(0, 2)), scheduler="flow-euler")
    with wide.run(timesteps=TIMESTEPS):
        wide(latent(), TIMESTEPS[0])
        with pytest.raises(InputError, match="called with the latent alone"):
            wide(latent(), TIMESTEPS[1])
    for plan in (11, (1, 2), (0, 0), "best"):
        with pytest.raises(SettingsError, match="meancache: plan is"):
            MeanCache(plan=plan)
    for window in (7, (1, 2), (0,) * 17):
        with pytest.raises(SettingsError, match="meancache: window"):
            MeanCache(window=window)
    with pytest.raises(SettingsError, match="windows is"):
        MeanVelocity(windows=((3, 2), (1, 2)))


@pytest.mark.parametrize(
    ("clock", "velocity", "unit"),
    [
        ("timestep", "noise", 1000.0),
        ("timestep", "data", -1000.0),
        ("unit", "noise", 1.0),
        ("reversed-unit", "data", 1.0),
        ("reversed-unit", "noise", -1.0),
    ],
)
def test_the_unit_is_that_of_the_models_class(clock: Any, velocity: Any, unit: float) -> None:
    """Levels rise where it is reversed, and some models' velocity points to the data."""
    adapter = Adapter("Some", (Blocks("blocks"),), clock=clock, velocity=velocity)
    found = MeanVelocity().resolve(Setup(adapter=adapter, scheduler=as_scheduler("flow-euler")))
    assert found.unit == pytest.approx(unit)
    other = Adapter("Some", (Blocks("blocks"),), velocity=None)
    with pytest.raises(NeedsError, match="the output of Some is none"):
        MeanVelocity().resolve(Setup(adapter=other, scheduler=as_scheduler("flow-euler")))

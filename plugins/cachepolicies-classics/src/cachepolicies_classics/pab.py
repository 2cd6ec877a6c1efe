"""PAB, Pyramid Attention Broadcast (Zhao et al., arXiv 2408.12588): every kind of attention at its own interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import deep_iterable, ge, instance_of

from cachepolicies import CachePolicy, Decision, Needs, NeedsError, PolicySettings, RunInfo, SettingsError, Setup, Step
from cachepolicies.adapters import CROSS, MLP, SPATIAL, TEMPORAL
from cachepolicies.contracts import Grain
from cachepolicies_classics._reasons import Why


def _an_interval(instance: object, attribute: Any, value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise SettingsError(f"pab: {attribute.name} is {value!r}; give a whole number of steps from 1, or None")


def _numbers(values: Iterable[float] | float) -> tuple[float, ...]:
    return (values,) if isinstance(values, int | float) else tuple(values)


@frozen
class PAB(PolicySettings):
    """Compute an attention at every r-th step only while t is in a window, r by kind: the pyramid.

    What the attention returned, before the block's gate, is held. Outside of the window everything is computed. The
    MLPs of the first blocks may be held behind some listed steps too.

    It reads t and the number of the step. It cuts at the site ``"attention"``, or ``"attention+mlp"``; ``hold`` stands
    in. It costs the memory of one output for each attention, and branch. It helps with video models, whose attention
    costs most, and with those that have attention to the text apart, which changes least. What users run into: the
    window is in timesteps of the scheduler, from 1000 down, and a schedule with a large shift spends few steps in it;
    conditional and unconditional calls need memories of their own, which they have here.

    Published, spatial / temporal / cross, window: Open-Sora 1.2 2 / 4 / 6, 450 to 930; Open-Sora-Plan 1.1 2 / 4 / 6,
    100 to 850; Latte 2 / 3 / 6, 100 to 800; CogVideoX 2, 100 to 850; Vchitect 2 / 4 / 6, 100 to 800.

    Attributes:
        spatial: r of attention among the latent's tokens; ``None`` to compute it at every step.
        temporal: r of attention among frames.
        cross: r of attention to the text.
        window: lowest and highest timestep, both excluded, between which attention is held; in timesteps of 1000, also
            for a model that is called with another measure, as far as its adapter knows that.
        mlp_blocks: MLPs of so many blocks, from the first, are held behind the steps of ``mlp_timesteps``.
        mlp_timesteps: in timesteps of 1000; the step whose timestep is nearest to each computes them.
        mlp_steps: how many steps they are held for.
    """

    name: ClassVar[str] = "pab"

    spatial: int | None = field(default=2, validator=_an_interval)
    temporal: int | None = field(default=4, validator=_an_interval)
    cross: int | None = field(default=6, validator=_an_interval)
    window: tuple[float, float] = field(default=(100.0, 800.0), converter=_numbers)
    mlp_blocks: int = field(default=0, validator=[instance_of(int), ge(0)])
    mlp_timesteps: tuple[float, ...] = field(
        default=(), converter=_numbers, validator=deep_iterable(instance_of((int, float)))
    )
    mlp_steps: int = field(default=2, validator=[instance_of(int), ge(1)])

    def __attrs_post_init__(self) -> None:
        if any(not isinstance(bound, int | float) for bound in self.window):
            raise SettingsError(f"pab: window is {self.window}; give two timesteps, (100, 800)")
        if len(self.window) != 2 or not self.window[0] < self.window[1]:
            raise SettingsError(f"pab: window is {self.window}; give the lowest and the highest timestep, (100, 800)")

    @property
    def site(self) -> str:
        """Every attention, and every MLP if some are held."""
        return "attention+mlp" if self.mlp_blocks else "attention"

    def resolve(self, setup: Setup) -> Pyramid:
        """Return the policy for the places of the site.

        Raises:
            NeedsError: the site does not say of which kind its places are.
        """
        kinds = {} if setup.site is None else setup.site.kinds
        if setup.site is not None and not kinds:
            raise NeedsError(
                f"pab decides by the kind of attention, and site {setup.site.name!r} does not say which its places "
                "are; leave the site out, or use site='attention'"
            )
        intervals = {SPATIAL: self.spatial, TEMPORAL: self.temporal, CROSS: self.cross}
        found = {place: intervals[kind] or 1 for place, kind in kinds.items() if kind in intervals}
        mlps = [place for place, kind in kinds.items() if kind == MLP]
        blocks = list(dict.fromkeys(place.rpartition(".")[0] for place in mlps))[: self.mlp_blocks]
        clock = "timestep" if setup.adapter is None else setup.adapter.clock
        return Pyramid(
            found,
            frozenset(place for place in mlps if place.rpartition(".")[0] in blocks),
            self.window,
            self.mlp_timesteps,
            self.mlp_steps,
            scale=1.0 if clock == "timestep" else 1000.0,
            reversed=clock == "reversed-unit",
        )


@frozen
class Pyramid(CachePolicy):
    """`PAB` on a site.

    Attributes:
        intervals: of every attention, by place.
        mlps: places of the MLPs that are held.
        window: timesteps between which attention is held.
        mlp_timesteps: behind which the MLPs are held.
        mlp_steps: how many steps they are held for.
        scale: timesteps of 1000 for one unit of t.
        reversed: whether t rises from 0, and is counted from its end.
    """

    name: ClassVar[str] = "pab"

    intervals: Mapping[str, int] = field(repr=lambda places: f"{len(places)} places")
    mlps: frozenset[str] = field(repr=lambda places: f"{len(places)} places")
    window: tuple[float, float]
    mlp_timesteps: tuple[float, ...]
    mlp_steps: int
    scale: float = 1.0
    reversed: bool = False

    @property
    def grain(self) -> Grain:
        """Place by place."""
        return "place"

    @property
    def needs(self) -> Needs:
        """The run length: steps are known by their place in it."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless all intervals are 1 and no MLP is held."""
        return any(interval > 1 for interval in self.intervals.values()) or bool(self.mlps and self.mlp_timesteps)

    def start(self, run: RunInfo) -> frozenset[int]:
        """Return the steps at which the MLPs are held."""
        levels = [self.timestep(t) for t in run.timesteps or ()]
        if not self.mlps or not levels:
            return frozenset()
        nearest = {min(range(len(levels)), key=lambda i: abs(levels[i] - wanted)) for wanted in self.mlp_timesteps}
        held = {i for key in nearest for i in range(key + 1, key + 1 + self.mlp_steps)}
        return frozenset(held - nearest)

    def decide(self, step: Step, state: frozenset[int]) -> Decision:
        """Hold an attention inside of the window but for every r-th step."""
        held, why = self._held(step, state)
        return Decision.same(held, why, step.run.decisions)

    def timestep(self, t: float) -> float:
        """Return t in timesteps of 1000."""
        return (1.0 - t if self.reversed else t) * self.scale

    def _held(self, step: Step, state: frozenset[int]) -> tuple[bool, Why]:
        if step.place in self.mlps:
            held = step.index in state
            return held, Why.HELD if held else Why.KEY
        interval = self.intervals.get(step.place, 1)
        if interval == 1:
            return False, Why.ALWAYS
        low, high = self.window
        if not low < self.timestep(step.t) < high:
            return False, Why.OUTSIDE
        held = step.index is not None and step.index % interval != 0
        return held, Why.HELD if held else Why.KEY

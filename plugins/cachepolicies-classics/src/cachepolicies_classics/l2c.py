"""Learning-to-Cache (Ma et al., arXiv 2406.01733): steps in pairs, the second with the modules that a mask keeps."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from attrs import field, frozen
from attrs.validators import instance_of

from cachepolicies import CachePolicy, Decision, Needs, PolicySettings, RunInfo, SettingsError, Setup, Step
from cachepolicies.contracts import Grain
from cachepolicies.profiles import model_class_name, weights_hash
from cachepolicies_classics._reasons import Why
from cachepolicies_classics.layer_mask import REMEDY, LayerMask, read_mask

_ROUNDING = 1e-5
"""Timesteps closer than this fraction of the largest are the same: samplers keep theirs in float32."""


@frozen
class L2C(PolicySettings):
    """Compute everything at the first step of each pair, and at the second only the modules that a mask keeps.

    What an attention or an MLP returned at the first step, before the block's gate, is held at the second where the
    mask leaves it out; the gate is that of the current t.

    It reads nothing but the number of the step. It cuts at the site ``"attention+mlp"``; ``hold`` stands in. It costs
    the memory of one output for each attention and MLP, and branch, and a mask, which is made beforehand for a model, a
    scheduler and a number of steps: by `trained_mask`, as published, or by `calibrated_mask`, which measures errors and
    trains nothing; its ``origin`` says which. At best it saves half of the steps' modules. It helps with transformers
    where some modules matter little at some steps, and with few steps already. What users run into: a mask is for one
    model, scheduler and number of steps; and a low penalty in training leaves hardly anything out.

    Published, trained: DiT-XL/2 at 256 pixels, DDIM of 50 steps (FID 4.29 uncached, 4.226) and of 20 (4.892, 4.644),
    penalty 1e-6 to 5e-6, lr 1e-3, threshold 0.1; at 512 pixels and U-ViT-H threshold 0.9, U-ViT's penalty 0.1.

    Attributes:
        mask: a `LayerMask`, or the path of one.
        check_weights: whether to compare the network's weights with those that the mask was made with, which takes as
            long as reading all of them.
    """

    name: ClassVar[str] = "l2c"
    site: ClassVar[str] = "attention+mlp"

    mask: LayerMask | str | Path = field(validator=instance_of((LayerMask, str, Path)))
    check_weights: bool = field(default=False, validator=instance_of(bool))

    def resolve(self, setup: Setup) -> FollowsMask:
        """Return the policy that follows the mask.

        Raises:
            MaskError: the file cannot be read.
            SettingsError: the mask is for another class, other weights, or other modules.
        """
        mask = self.mask if isinstance(self.mask, LayerMask) else read_mask(self.mask)
        if setup.network is not None:
            found = model_class_name(setup.network)
            if found != mask.model_class:
                raise SettingsError(f"l2c: the mask is for a {mask.model_class}, and this is a {found}; {REMEDY}")
        if self.check_weights:
            if mask.weights is None:
                raise SettingsError("l2c: check_weights=True, and the mask does not say which weights it is for")
            if setup.network is not None and weights_hash(setup.network) != mask.weights:
                raise SettingsError(f"l2c: the mask was made with other weights than this model's; {REMEDY}")
        places = mask.places if setup.site is None else setup.site.places
        strange = [*sorted({*mask.places} - {*places}), *sorted({*places} - {*mask.places})]
        if strange and setup.network is not None:
            raise SettingsError(
                f"l2c: the mask has other modules than the site, {len(strange)} of them, {strange[0]!r} for one; leave "
                f"the site out, or {REMEDY}"
            )
        return FollowsMask(mask)


@frozen
class FollowsMask(CachePolicy):
    """`L2C` with its mask at hand.

    Attributes:
        mask: which modules are computed.
    """

    name: ClassVar[str] = "l2c"

    mask: LayerMask

    @property
    def grain(self) -> Grain:
        """Place by place."""
        return "place"

    @property
    def needs(self) -> Needs:
        """The run length: steps are counted."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every module is computed at every step."""
        return self.mask.share_computed < 1.0

    def start(self, run: RunInfo) -> tuple[frozenset[str], ...]:
        """Return the places that are held, for every step.

        Raises:
            SettingsError: the run has another number of steps, or other timesteps, than the mask was made for.
        """
        mask, levels = self.mask, run.timesteps
        if run.num_steps != mask.num_steps:
            raise SettingsError(f"l2c: the mask is for {mask.num_steps} steps, the run has {run.num_steps}; {REMEDY}")
        if mask.timesteps is not None and levels is not None:
            for step, (planned, t) in enumerate(zip(_of_largest(mask.timesteps), _of_largest(levels), strict=True)):
                if abs(planned - t) > _ROUNDING:
                    raise SettingsError(
                        f"l2c: the mask is for other timesteps: at step {step} for {planned:.4g} of the largest t, and "
                        f"the run has {t:.4g}; {REMEDY} for this scheduler"
                    )
        return tuple(mask.held_at(step) for step in range(mask.num_steps))

    def decide(self, step: Step, state: tuple[frozenset[str], ...]) -> Decision:
        """Hold what the mask leaves out."""
        held = step.index is not None and step.place in state[step.index]
        return Decision.same(held, Why.HELD if held else Why.KEY, step.run.decisions)


def _of_largest(levels: tuple[float, ...]) -> list[float]:
    """Return levels as fractions of the largest: a model may be called with another unit than the scheduler counts."""
    largest = max(map(abs, levels)) or 1.0
    return [level / largest for level in levels]

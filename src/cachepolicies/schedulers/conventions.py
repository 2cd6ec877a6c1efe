"""Conventions of t and velocity: models that count otherwise than diffusers does, seen as if they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import SettingsError, nearest_match_hint
from cachepolicies.base.models import model_class_name, network_inside
from cachepolicies.base.outputs import form_of, tensor_of

HORIZON = 1000.0
"""t at pure noise, as this library and diffusers count."""


@frozen
class Convention:
    """How a flow-matching model is called, and what it returns.

    This library counts t from 1000 (noise) down to 0 (data), and a velocity is ``noise - data``. Decisions and plans
    depend on neither: they are made in this count, whatever the model is called with.

    Attributes:
        name: of the convention.
        at_noise: t at pure noise, as the model is called.
        at_data: t at the data.
        sign: +1 where the model returns ``noise - data``, -1 where it returns ``data - noise``.
        used_by: who counts so.
    """

    name: str
    at_noise: float
    at_data: float
    sign: int
    used_by: str

    def level(self, t: float) -> float:
        """Return t in this library's count, from t as the model is called."""
        return HORIZON * (t - self.at_data) / (self.at_noise - self.at_data)

    def own(self, level: Any) -> Any:
        """Return t as the model is called, from this library's count; a number or a tensor."""
        return self.at_data + level * ((self.at_noise - self.at_data) / HORIZON)

    @property
    def is_own(self) -> bool:
        """Whether it is this library's."""
        return self == DIFFUSERS


DIFFUSERS = Convention("diffusers", HORIZON, 0.0, 1, "diffusers, and this library")

CONVENTIONS: Mapping[str, Convention] = {
    each.name: each
    for each in (
        DIFFUSERS,
        Convention("flow-matching", 0.0, 1.0, -1, "Meta's flow_matching, torchcfm, Lumina, Z-Image"),
        Convention("unit", 1.0, 0.0, 1, "FLUX and others inside of diffusers' pipelines; SD3's own code with sigma"),
        Convention("reversed-thousand", 0.0, HORIZON, -1, "models that count the steps done"),
    )
}
"""By name."""


def as_convention(value: str | Convention | None) -> Convention:
    """Return the convention of a name; this library's own for ``None``.

    Raises:
        SettingsError: there is none of that name.
    """
    if value is None:
        return DIFFUSERS
    if isinstance(value, Convention):
        return value
    if value not in CONVENTIONS:
        raise SettingsError(f"unknown convention {value!r}: {nearest_match_hint(str(value), CONVENTIONS)}")
    return CONVENTIONS[value]


class InConvention:
    """A model of another convention, called and answering as this library counts.

    Attributes:
        model: as it is.
        convention: how it counts.
        network: the module inside it, if there is one.
        model_class_name: what a profile knows the model by.
    """

    def __init__(self, model: Callable[..., Any], convention: Convention) -> None:
        self.model, self.convention = model, convention
        self.model_class_name = model_class_name(model)
        self.network = network_inside(model)
        self.config = getattr(model, "config", None)

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the model with its own t, and return the velocity ``noise - data``, in the form it came."""
        output = self.model(x, self.convention.own(t), *args, **kwargs)
        if self.convention.sign > 0:
            return output
        return form_of(output).fill(-tensor_of(output))


def in_convention(model: Callable[..., Any], convention: str | Convention | None) -> Callable[..., Any]:
    """Return a model as this library calls it; the model itself where it counts so already."""
    found = as_convention(convention)
    return model if found.is_own else InConvention(model, found)


def likeness(velocity: Tensor, noise: Tensor) -> Tensor:
    """Return the cosine between the velocity at pure noise and the noise itself, ``(B,)`` float64.

    There the velocity is ``noise`` minus the mean of the data: near 1 for a model that is called and read rightly. With
    the wrong sign, or called as if the noise were data, it is near -1; of an untrained model near 0.
    """
    a, b = (values.reshape(values.shape[0], -1).double() for values in (velocity, noise))
    sizes = a.norm(dim=1) * b.norm(dim=1)
    return (a * b).sum(dim=1) / torch.where(sizes > 0, sizes, 1.0)

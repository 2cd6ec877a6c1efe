"""The built-in policies, schedulers and substitutes: a plugin like any other."""

from __future__ import annotations

from functools import partial

from cachepolicies.hookspecs import Register, hookimpl, lazy


@hookimpl
def cachepolicies_register_policies(register: Register) -> None:
    """Register the policies of `cachepolicies.policies`."""
    module = "cachepolicies.policies"
    register("never", lazy(f"{module}.never:Never"), "Evaluates every step: the baseline.")
    register("sencache", lazy(f"{module}.sencache:SenCache"), "Reuses while a calibrated bound on the change holds.")
    register("uniform", lazy(f"{module}.uniform:Uniform"), "Evaluates every m-th step, or so many evenly spaced ones.")


@hookimpl
def cachepolicies_register_schedulers(register: Register) -> None:
    """Register the schedulers of `cachepolicies.schedulers`, and those of diffusers by class name."""
    from cachepolicies.schedulers.from_diffusers import SUPPORTED, from_class_name

    module = "cachepolicies.schedulers"
    register("ddim", lazy(f"{module}.ddim:DDIM"), "DDIM on a variance-preserving schedule.")
    register("ddpm", lazy(f"{module}.ddpm:DDPM"), "Ancestral DDPM on a variance-preserving schedule.")
    register("flow-euler", lazy(f"{module}.flow_euler:FlowEuler"), "Euler on the flow-matching ODE, with shift.")
    register(
        "karras-euler", lazy(f"{module}.karras_euler:KarrasEuler"), "Euler on Karras noise levels: model(x, sigma)."
    )
    register("karras-heun", lazy(f"{module}.karras_heun:KarrasHeun"), "Heun on Karras noise levels: model(x, sigma).")
    for name in SUPPORTED:
        register(name, partial(from_class_name, name), "The scheduler of diffusers that has this name.")


@hookimpl
def cachepolicies_register_substitutes(register: Register) -> None:
    """Register the substitutes of `cachepolicies.substitutes`."""
    register("hold", lazy("cachepolicies.substitutes.hold:Hold"), "Holds the last evaluated output.")

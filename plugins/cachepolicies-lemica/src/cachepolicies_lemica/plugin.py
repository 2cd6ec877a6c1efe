"""The plugin: what the entry point names and cachepolicies imports."""

from __future__ import annotations

from cachepolicies.hookspecs import Register, hookimpl, lazy


@hookimpl
def cachepolicies_register_policies(register: Register) -> None:
    """Register the policy; it is imported when it is first used."""
    register(
        "lemica",
        lazy("cachepolicies_lemica:LeMiCa"),
        "Evaluate where the worst stretch of reuses becomes least harmful (LeMiCa, arXiv 2511.00090).",
    )

"""The plugin: what the entry point names and cachepolicies imports."""

from __future__ import annotations

from cachepolicies.hookspecs import Register, hookimpl
from cachepolicies_example.every_other import EveryOther


@hookimpl
def cachepolicies_register_policies(register: Register) -> None:
    """Register the policy of this package; the summary is the first line of its docstring."""
    register("every-other", EveryOther)

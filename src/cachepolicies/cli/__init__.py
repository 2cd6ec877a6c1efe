"""The command line: ``cachepolicies``; one file for each command or family of commands."""

from __future__ import annotations

from cachepolicies.cli import calibrate, compare, new, plan, profiles, registries, trials
from cachepolicies.cli.application import app

for commands in (compare, calibrate, trials, plan, profiles, registries, new):
    commands.add_to(app)

__all__ = ["app"]

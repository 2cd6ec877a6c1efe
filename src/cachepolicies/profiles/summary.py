"""A profile in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cachepolicies.base.console import PlainTable
from cachepolicies.profiles.measured import Profile
from cachepolicies.profiles.parts import Curve, Trials

_UNKNOWN = "not stated"
"""What is shown of a value that a published profile's source does not say."""

_ROWS = 9

_SMALLEST = 1e-10
"""RMS below which a PSNR does not rise any more: 200 dB."""


def summarise(profile: Profile) -> Group:
    """Return what a profile was made for, what it holds, and its curves at a few t, as a rich renderable."""
    parts = [_provenance_table(profile)]
    if profile.settings:
        parts.append(_settings_table(profile))
    if profile.polynomials:
        parts.append(_polynomials_table(profile))
    if profile.magnitude_ratios:
        parts.append(_ratios_table(profile))
    if profile.recommended:
        parts.append(_recommended_table(profile))
    parts += [summarise_trials(tried) for tried in profile.trials]
    return Group(*parts, *(_curve_table(name, curve) for name, curve in sorted(profile.curves.items())))


def summarise_trials(trials: Trials) -> Table:
    """Return what planned runs were off by, as a rich renderable."""
    title = f"trials of {trials.substitute}, {trials.objective}, {trials.weights} weights: {trials.samples} samples"
    table = PlainTable(title=title, title_justify="left")
    table.add_column("evaluations", justify="right")
    pictures = ("PSNR, mean", "worst PSNR") if trials.picture_rms is not None else ()
    for name in ("RMS of the latent, mean", "worst RMS", *pictures):
        table.add_column(name, justify="right")
    for row, budget in enumerate(trials.budgets):
        cells = [str(budget), f"{trials.rms[row].mean():.3g}", f"{trials.rms[row].max():.3g}"]
        if trials.picture_rms is not None:
            decibels = -20.0 * np.log10(np.maximum(trials.picture_rms[row], _SMALLEST))
            cells += [f"{decibels.mean():.1f}", f"{decibels.min():.1f}"]
        table.add_row(*cells)
    return table


def _provenance_table(profile: Profile) -> Table:
    table = PlainTable(title=f"profile {profile.name}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    scheduler = profile.scheduler
    rows = {
        "origin": profile.origin,
        "model": profile.model.class_name,
        "config hash": _first_digits(profile.model.config_hash),
        "weights hash": _first_digits(profile.model.weights_hash),
        "prediction": profile.prediction_type or _UNKNOWN,
        "latent shape": _UNKNOWN if profile.latent_shape is None else " x ".join(map(str, profile.latent_shape)),
        "dtype": profile.dtype or _UNKNOWN,
        "guidance": "none" if profile.guidance is None else f"{profile.guidance:g}",
        "scheduler": _UNKNOWN if scheduler is None else f"{scheduler.name} ({scheduler.family})",
        "settings": _pairs(scheduler.config) if scheduler and scheduler.config else "none",
        "steps": _steps_text(profile),
        "trajectory": "the model's own runs" if profile.trajectory == "model" else "noised data",
        "samples": f"{profile.samples}, {profile.evaluations} evaluations each",
        "seeds": ", ".join(map(str, profile.seeds)) or "none",
        "tables": ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in sorted(profile.tables.items()))
        or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in profile.versions.items()) or "none",
        "created": profile.created or "unknown",
    }
    if profile.origin == "published":
        for name in (
            "config hash",
            "weights hash",
            "settings",
            "guidance",
            "trajectory",
            "samples",
            "seeds",
            "versions",
        ):
            del rows[name]
        rows |= {f"source, {method}": _pairs(values) for method, values in profile.source.items()}
    if profile.notes:
        rows["notes"] = profile.notes
    if profile.irregularities:
        rows["irregularities"] = "\n".join(f"- {text}" for text in profile.irregularities)
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return table


def _steps_text(profile: Profile) -> str:
    t = profile.timesteps
    if not t:
        return f"{profile.num_steps}, timesteps not stated" if profile.num_steps else _UNKNOWN
    final = "not evaluated" if profile.final_t is None else f"{profile.final_t:g}"
    return f"{profile.num_steps}, t from {t[0]:g} to {t[-1]:g}, sample at {final}"


def _settings_table(profile: Profile) -> Table:
    table = PlainTable(title="settings of policies that give none", title_justify="left")
    table.add_column("policy")
    table.add_column("settings", overflow="fold")
    for policy, settings in sorted(profile.settings.items()):
        table.add_row(policy, Text(_pairs(settings)))
    return table


def _polynomials_table(profile: Profile) -> Table:
    table = PlainTable(title="polynomials, highest power first", title_justify="left")
    table.add_column("signal")
    table.add_column("coefficients", overflow="fold")
    table.add_column("R^2", justify="right")
    for signal, polynomial in sorted(profile.polynomials.items()):
        fit = "unknown" if polynomial.r_squared is None else f"{polynomial.r_squared:.4f}"
        table.add_row(signal, ", ".join(f"{value:.6g}" for value in polynomial.coefficients), fit)
    return table


def _ratios_table(profile: Profile) -> Table:
    streams = profile.magnitude_ratios
    table = PlainTable(title="magnitude ratios", title_justify="left")
    table.add_column("step", justify="right")
    for stream in streams:
        table.add_column(f"{stream or 'all streams'}, mean", justify="right")
        table.add_column("std", justify="right")
    last = max(len(ratios) for ratios in streams.values()) - 1
    for k in sorted({round(row * last / (_ROWS - 1)) for row in range(_ROWS)}):
        cells = [(f"{r[k].mean():.5g}", f"{r[k].std():.2g}") if k < len(r) else ("", "") for r in streams.values()]
        table.add_row(str(k), *(cell for pair in cells for cell in pair))
    return table


def _recommended_table(profile: Profile) -> Table:
    table = PlainTable(title="recommended by the source", title_justify="left")
    for column in ("policy", "settings", "speed-up stated", "from latency", "hardware", "setting"):
        table.add_column(column, overflow="fold")
    for r in profile.recommended:
        factors = (f"{factor:g}" if factor is not None else "" for factor in (r.speedup_stated, r.speedup_from_latency))
        setting = "; ".join(text for text in (r.setting, r.note) if text)
        table.add_row(r.policy, Text(_pairs(r.settings)), *factors, r.hardware or "", Text(setting))
    return table


def _pairs(values: Any) -> str:
    if not isinstance(values, Mapping):
        return str(values)
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _curve_table(name: str, curve: Curve) -> Table:
    table = PlainTable(title=name, title_justify="left")
    for column in ("t", "mean", "std", "5 %", "50 %", "95 %"):
        table.add_column(column, justify="right")
    columns = (curve.mean(), curve.spread(), curve.quantile(0.05), curve.quantile(0.5), curve.quantile(0.95))
    last = len(curve.t) - 1
    for index in sorted({round(row * last / (_ROWS - 1)) for row in range(_ROWS)}):
        table.add_row(f"{curve.t[index]:g}", *(f"{column[index]:.4g}" for column in columns))
    return table


def _first_digits(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]

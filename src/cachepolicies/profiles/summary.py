"""A profile in a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from cachepolicies.profiles.schema import Curve, Profile

_ROWS = 9


def summarise(profile: Profile) -> Group:
    """Return what a profile was calibrated for, what it holds, and its curves at a few t, as a rich renderable."""
    return Group(_provenance(profile), *(_curve(name, curve) for name, curve in sorted(profile.curves.items())))


def _provenance(profile: Profile) -> Table:
    table = Table(title=f"profile {profile.name}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    t = profile.timesteps
    final = "not evaluated" if profile.final_t is None else f"{profile.final_t:g}"
    rows = {
        "model": profile.model.class_name,
        "config hash": _short(profile.model.config_hash),
        "weights hash": _short(profile.model.weights_hash),
        "prediction": profile.prediction_type,
        "latent shape": " x ".join(map(str, profile.latent_shape)),
        "dtype": profile.dtype,
        "guidance": "none" if profile.guidance is None else f"{profile.guidance:g}",
        "scheduler": f"{profile.scheduler.name} ({profile.scheduler.family})",
        "settings": ", ".join(f"{key}={value}" for key, value in profile.scheduler.config.items()) or "none",
        "steps": f"{profile.num_steps}, t from {t[0]:g} to {t[-1]:g}, sample at {final}",
        "trajectory": "the model's own runs" if profile.trajectory == "model" else "noised data",
        "samples": f"{profile.samples}, {profile.evaluations} evaluations each",
        "seeds": ", ".join(map(str, profile.seeds)) or "none",
        "tables": ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in sorted(profile.tables.items()))
        or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in profile.versions.items()) or "none",
        "created": profile.created or "unknown",
    }
    if profile.notes:
        rows["notes"] = profile.notes
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _curve(name: str, curve: Curve) -> Table:
    table = Table(title=name, title_justify="left")
    for column in ("t", "mean", "std", "5 %", "50 %", "95 %"):
        table.add_column(column, justify="right")
    columns = (curve.mean(), curve.spread(), curve.quantile(0.05), curve.quantile(0.5), curve.quantile(0.95))
    last = len(curve.t) - 1
    for index in sorted({round(row * last / (_ROWS - 1)) for row in range(_ROWS)}):
        table.add_row(f"{curve.t[index]:g}", *(f"{column[index]:.4g}" for column in columns))
    return table


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]

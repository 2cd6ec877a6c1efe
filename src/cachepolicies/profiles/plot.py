"""Draw a profile: what was measured, over t, with its spread over the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cachepolicies.base.errors import NeedsError
from cachepolicies.base.figures import new_figure, save_figure
from cachepolicies.profiles.measured import Profile

_HEIGHT = 3.6
"""Inches of a figure."""

_BANDS = ((0.05, 0.95, 0.2), (0.25, 0.75, 0.35))


def plot_sensitivities(profile: Profile, path: str | Path) -> Path:
    """Draw the means of alpha_x(t) and alpha_t(t) with their 5-95 % and 25-75 % bands (SenCache, Figure 4).

    Their correlation ``rho`` and the ``weight`` of the steps are drawn beside them where the profile has them. Time
    runs from left to right, so the t axis is inverted.

    Args:
        profile: needs the curves ``alpha_x`` and ``alpha_t``.
        path: of the picture; the suffix chooses the format (``.png``, ``.svg``, ``.pdf``). Its folder is created.

    Returns:
        The path.

    Raises:
        NeedsError: matplotlib is not installed, or a curve is missing.
        SettingsError: matplotlib cannot write this format.
    """
    profile.require("plot", ("alpha_x", "alpha_t"))
    labels = {
        "alpha_x": r"$\alpha_x$ (dimensionless)",
        "alpha_t": r"$\alpha_t$ (RMS per unit of t)",
        "rho": r"$\rho$ (dimensionless)",
        "weight": "weight (dimensionless)",
    }
    there = {name: label for name, label in labels.items() if name in profile.curves}
    figure = new_figure("a profile", 4.5 * len(there), _HEIGHT)
    panels = figure.subplots(1, len(there))
    for axes, (name, label) in zip(panels, there.items(), strict=True):
        curve = profile.curves[name]
        for low, high, opacity in _BANDS:
            band = f"{low * 100:.0f} to {high * 100:.0f} %"
            axes.fill_between(
                curve.t, curve.quantile(low), curve.quantile(high), alpha=opacity, color="C0", lw=0, label=band
            )
        axes.plot(curve.t, curve.mean(), color="C0", label="mean")
        axes.set_xlabel("t")
        axes.set_ylabel(label)
        if name == "rho":
            axes.set_ylim(-1.05, 1.05)
            axes.axhline(0.0, color="0.6", lw=0.8, zorder=0)
        else:
            axes.set_ylim(bottom=0)
        axes.invert_xaxis()
    panels[0].legend(frameon=False)
    return _save(figure, profile, path)


def plot_magnitude_ratios(profile: Profile, path: str | Path) -> Path:
    """Draw the magnitude ratios of every stream, mean and standard deviation over the samples (MagCache, Figure 3).

    They are drawn over the step, with the cumulative product beside them: how the size of the residual goes.

    Args:
        profile: needs a table ``magnitude_ratio`` or ``magnitude_ratio.<stream>``.
        path: of the picture, as for `plot_sensitivities`.

    Returns:
        The path.

    Raises:
        NeedsError: matplotlib is not installed, or there is no such table.
        SettingsError: matplotlib cannot write this format.
    """
    if not profile.magnitude_ratios:
        profile.require("plot", ("magnitude_ratio",))
    figure = new_figure("a profile", 9.0, _HEIGHT)
    left, right = figure.subplots(1, 2)
    for number, (stream, ratios) in enumerate(profile.magnitude_ratios.items()):
        for axes, values in ((left, ratios), (right, ratios.cumprod(axis=0))):
            steps, mean, std = np.arange(len(values)), values.mean(axis=1), values.std(axis=1)
            colour = f"C{number}"
            axes.fill_between(steps, mean - std, mean + std, alpha=0.25, color=colour, lw=0)
            axes.plot(steps, mean, color=colour, label=stream or "all streams")
    left.set_ylabel("size over that at the step before")
    right.set_ylabel("size over that at the first step")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.axhline(1.0, color="0.6", lw=0.8, zorder=0)
    left.legend(frameon=False)
    return _save(figure, profile, path)


def plot_polynomial(profile: Profile, path: str | Path, signal: str | None = None) -> Path:
    """Draw the polynomial of a signal; with the points it was fitted to, its R^2 and the residuals where measured.

    Args:
        profile: needs a polynomial; the points are the tables ``signal_change.<signal>`` and ``output_change``.
        path: of the picture, as for `plot_sensitivities`.
        signal: which one, the first by name if ``None``.

    Returns:
        The path.

    Raises:
        NeedsError: matplotlib is not installed, or there is no polynomial of that signal.
        SettingsError: matplotlib cannot write this format.
    """
    names = sorted(profile.polynomials)
    if not names or (signal is not None and signal not in names):
        wanted = "a polynomial" if signal is None else f"the polynomial of {signal!r}"
        raise NeedsError(f"plot needs {wanted}; profile {profile.name!r} has: {', '.join(names) or 'none'}")
    signal = names[0] if signal is None else signal
    polynomial = profile.polynomials[signal]
    change, output = profile.tables.get(f"signal_change.{signal}"), profile.tables.get("output_change")
    measured = change is not None and output is not None
    figure = new_figure("a profile", 9.0 if measured else 5.0, _HEIGHT)
    axes = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    fit = "" if polynomial.r_squared is None else f", $R^2$ = {polynomial.r_squared:.3f}"
    if change is None or output is None:
        span = np.linspace(0.0, 0.5, 200)  # relative changes over a step beyond a half are rare
    else:
        span = np.linspace(0.0, float(change.max()), 200)
        axes[0].scatter(change, output, s=6, color="C1", alpha=0.5, label="measured")
        axes[1].scatter(change, output - polynomial(change), s=6, color="C1", alpha=0.5)
        axes[1].axhline(0.0, color="0.6", lw=0.8, zorder=0)
        axes[1].set_ylabel("measured - estimated")
    axes[0].plot(span, polynomial(span), color="C0", label=f"degree {polynomial.degree}{fit}")
    axes[0].set_ylabel("relative change of the output")
    axes[0].legend(frameon=False)
    for each in axes:
        each.set_xlabel(f"relative change of {signal}")
    return _save(figure, profile, path)


def _save(figure: Any, profile: Profile, path: str | Path) -> Path:
    samples = f"{profile.samples} sample{'s' if profile.samples > 1 else ''}"
    made = samples if profile.origin == "measured" else "published"
    steps = f"{profile.num_steps} steps" if profile.num_steps else "steps not stated"
    figure.suptitle(f"{profile.name}: {profile.model.class_name}, {steps}, {made}")
    return save_figure(figure, path)

"""Draw a profile: the two sensitivities over t with their spread over the samples (SenCache, Figure 4)."""

from __future__ import annotations

from pathlib import Path

from cachepolicies._errors import NeedsError, SettingsError
from cachepolicies.profiles.schema import Profile

_BANDS = ((0.05, 0.95, 0.2), (0.25, 0.75, 0.35))


def plot_sensitivities(profile: Profile, path: str | Path) -> Path:
    """Draw the means of alpha_x(t) and alpha_t(t) with their 5-95 % and 25-75 % bands over the samples.

    Time runs from left to right, so the t axis is inverted.

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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NeedsError(
            "drawing a profile needs matplotlib, which is not installed; install the extra `plots`"
        ) from error

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {"alpha_x": r"$\alpha_x$ (dimensionless)", "alpha_t": r"$\alpha_t$ (RMS per unit of t)"}
    for axes, (name, label) in zip((left, right), labels.items(), strict=True):
        curve = profile.curves[name]
        for low, high, opacity in _BANDS:
            band = f"{low * 100:.0f} to {high * 100:.0f} %"
            axes.fill_between(
                curve.t, curve.quantile(low), curve.quantile(high), alpha=opacity, color="C0", lw=0, label=band
            )
        axes.plot(curve.t, curve.mean(), color="C0", label="mean")
        axes.set_xlabel("t")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.invert_xaxis()
    left.legend(frameon=False)
    samples = f"{profile.samples} sample{'s' if profile.samples > 1 else ''}"
    figure.suptitle(f"{profile.name}: {profile.model.class_name}, {profile.num_steps} steps, {samples}")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(target, dpi=150)
    except ValueError as error:
        raise SettingsError(f"cannot draw to {target}: {error}; use the suffix .png, .svg or .pdf") from error
    return target

"""From the CSV files to one summary, the plots and the page of the documentation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from configurations import CONFIGURATIONS, Configuration
from rows import (
    CONSTANT,
    EXTRA_BUDGETS,
    FEWER,
    HOLD,
    LINEAR,
    METHODS,
    NONE,
    PATH,
    PLANNED,
    UNIFORM,
    WEIGHTED,
)

_KEY = ["configuration", "method", "substitute", "budget"]
_ORDER = [(method, substitute) for method, substitutes in METHODS for substitute in substitutes]
_DRAWN = (
    (FEWER, NONE),
    (UNIFORM, HOLD),
    (CONSTANT, HOLD),
    (WEIGHTED, HOLD),
    (PLANNED, HOLD),
    (UNIFORM, LINEAR),
    (WEIGHTED, LINEAR),
    (WEIGHTED, PATH),
    (PLANNED, PATH),
)
"""What the plots show; the tables have everything."""

CEILING = 100.0
"""Decibels that a sample counts for at most: one that took every step is the uncached sample, its PSNR infinite."""

_CLOSE = 1.0
"""Evaluations above the budget with which a rule is still compared with others at it."""


def write_report(folder: Path, docs: Path) -> list[Path]:
    """Write ``summary.csv`` beside the CSV files, one plot for every configuration, and ``study.md``."""
    measured = [(c, folder / f"{c.slug}.csv") for c in CONFIGURATIONS]
    # a row that was interrupted while it was written is there twice
    present = [
        (c, pd.read_csv(path).drop_duplicates([*_KEY, "seed"], keep="last")) for c, path in measured if path.exists()
    ]
    if not present:
        raise SystemExit(f"nothing is measured yet in {folder}; run without --report")
    pictures = docs / "assets" / "study"
    pictures.mkdir(parents=True, exist_ok=True)
    summary = pd.concat([summarised(cells) for _, cells in present], ignore_index=True)
    written = [folder / "summary.csv", docs / "study.md"]
    summary.round(4).to_csv(written[0], index=False)
    sections = []
    for configuration, _ in present:
        own = summary[summary.configuration == configuration.name]
        picture = pictures / f"{configuration.slug}.png"
        _plot(own, configuration, picture)
        written.append(picture)
        sections.append(_section(own, configuration, f"assets/study/{picture.name}"))
    written[1].write_text(_page(_glance(summary), sections, [c for c, _ in present]), encoding="utf-8")
    return written


def summarised(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one line a row of the study: evaluations, PSNR, SSIM, and the paired difference from fewer steps."""
    cells = cells.assign(psnr=cells.psnr.clip(upper=CEILING))
    rival = cells[cells.method == FEWER].set_index(["budget", "seed"])["psnr"]
    paired = cells.assign(
        gain=cells.psnr - rival.reindex(pd.MultiIndex.from_frame(cells[["budget", "seed"]])).to_numpy()
    )
    groups = paired.groupby(_KEY, sort=False)
    return groups.agg(
        samples=("seed", "size"),
        nfe=("nfe", "mean"),
        nfe_most=("nfe", "max"),
        psnr=("psnr", "mean"),
        psnr_std=("psnr", "std"),
        psnr_median=("psnr", "median"),
        psnr_worst=("psnr", "min"),
        gain=("gain", "mean"),
        gain_std=("gain", "std"),
        gain_worst=("gain", "min"),
        ssim=("ssim", "mean"),
        ssim_std=("ssim", "std"),
        ssim_worst=("ssim", "min"),
    ).reset_index()


def _table(own: pd.DataFrame, budgets: list[int]) -> str:
    lines = [
        "| rule | substitute | " + " | ".join(str(budget) for budget in budgets) + " |",
        "|---|---|" + "---|" * len(budgets),
    ]
    cells = own.set_index(["method", "substitute", "budget"])
    best = own.groupby("budget").psnr.max()
    for method, substitute in _ORDER:
        texts = []
        for budget in budgets:
            key = (method, substitute, budget)
            if key not in cells.index:
                texts.append("-")
                continue
            cell = cells.loc[key]
            if cell.psnr != cell.psnr:
                texts.append("n/a")
                continue
            mean = f"{cell.psnr:.1f}"
            mean = f"**{mean}**" if cell.psnr == best[budget] else mean
            texts.append(f"{mean} ± {cell.psnr_std:.1f}, {cell.psnr_worst:.1f}, {cell.gain:+.1f}; {cell.nfe:.1f}")
        lines.append(f"| {method} | {substitute} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _section(own: pd.DataFrame, configuration: Configuration, picture: str) -> str:
    budgets = sorted(own.budget.unique().tolist())
    return (
        f"## {configuration.model}, {configuration.sampler}, {configuration.steps} steps\n\n"
        f"![PSNR over evaluations]({picture})\n\n{_table(own, budgets)}\n"
    )


def _glance(summary: pd.DataFrame) -> str:
    """Return a table of the best rule of every configuration and budget, and how far it is ahead of fewer steps."""
    budgets = sorted(summary.budget.unique().tolist())
    lines = ["| | " + " | ".join(map(str, budgets)) + " |", "|---|" + "---|" * len(budgets)]
    for configuration, own in summary.groupby("configuration", sort=False):
        known = own[own.psnr.notna() & (own.nfe <= own.budget + _CLOSE)]
        best = known.loc[known.groupby("budget").psnr.idxmax()].set_index("budget")
        texts = []
        for budget in budgets:
            if budget not in best.index:
                texts.append("")
                continue
            cell = best.loc[budget]
            with_what = "" if cell.substitute == NONE else f", {cell.substitute}"
            texts.append(f"{cell.psnr:.1f}, {cell.gain:+.1f}; {cell.nfe:.1f}: {cell.method}{with_what}")
        lines.append(f"| {configuration} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _page(glance: str, sections: list[str], present: list[Configuration]) -> str:
    missing = [c.name for c in CONFIGURATIONS if c not in present]
    absent = f"\n\nNot measured: {', '.join(missing)}." if missing else ""
    return (
        "# The study\n\n"
        "Every rule with every substitute at equal evaluations, on the two trained reference models with guidance 2. "
        "A cell reads: mean PSNR ± standard deviation over the samples, the worst sample, the mean paired difference "
        "from *fewer steps* of the same solver (all in dB, against the uncached sample of the same seed); after the "
        "semicolon, the evaluations a sample that were really taken. "
        f"A sample counts for {CEILING:.0f} dB at most. The best mean of a column is bold. `n/a`: the "
        "rule has no setting within one evaluation of this budget (the strict or protected first fifth alone takes "
        "more), or the plan has no tolerance that repeats it. `-`: not measured; eps(t) in closed form is measured at "
        f"{', '.join(map(str, sorted(EXTRA_BUDGETS)))} evaluations only.\n\n"
        "Settings are found on the calibration runs alone (seeds from 1000, eight of them); the samples have seeds "
        "from 0. SenCache with a constant tolerance is the paper's: 0.01 in the first fifth. TeaCache and MagCache are "
        "cut at the block stack, as their authors do, all others at the denoiser's output. `linear` extrapolates in "
        "the scheduler's own time, `linear:time=path` along the calibrated path of the output. On the image model "
        "`euler` is DDIM. SSIM, medians and the spread of the differences are in `bench/study/results/summary.csv`; "
        f"`make study` measures everything again.{absent}\n\n"
        "## The best of each\n\n"
        "Mean PSNR of the best rule, how far it is ahead of fewer steps of the same solver, and the evaluations a "
        "sample that it really took: a rule that takes more than one above the budget is left out.\n\n"
        f"{glance}\n\n" + "\n".join(sections)
    )


def _plot(own: pd.DataFrame, configuration: Configuration, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (means, worst) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for method, substitute in _DRAWN:
        line = own[(own.method == method) & (own.substitute == substitute)].sort_values("budget")
        if line.empty:
            continue
        style = {NONE: ":", HOLD: "--"}.get(substitute, "-")
        label = method if substitute == NONE else f"{method} / {substitute}"
        means.plot(line.nfe, line.psnr, style, marker="o", markersize=3, label=label)
        worst.plot(line.nfe, line.psnr_worst, style, marker="o", markersize=3)
    means.set(xlabel="evaluations a sample", ylabel="PSNR (dB)", title="mean")
    worst.set(xlabel="evaluations a sample", title="worst sample")
    for axes in (means, worst):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(configuration.name)
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""Everything that is registered keeps its contract, as `cachepolicies.testing` has it.

A new name needs an entry in the table of its kind below: the checks of one object, or of several with other settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from cachepolicies.builtin.plugin import LAYERS
from cachepolicies.planning import DepthPlan, PlacePart, PlanSource
from cachepolicies.planning.tolerance_curve import ToleranceCurve
from cachepolicies.policies import (
    DepthSchedule,
    EasyCache,
    MagCache,
    Never,
    Schedule,
    SeaCache,
    SenCache,
    TeaCache,
    Uniform,
)
from cachepolicies.registry.load import load_plugins
from cachepolicies.registry.registry import Registry
from cachepolicies.testing import (
    Check,
    parametrize_with_checks,
    policy_checks,
    scheduler_checks,
    score_checks,
    signal_checks,
    site_checks,
    substitute_checks,
    tolerance_checks,
)
from cachepolicies.tolerances import OfT, Planned
from made_plans import plan_of
from making_models import checks_of, subject_of
from tiny_models import EVERY_TINY, TINY

pytestmark = [
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

LOADED = load_plugins()
LEVELS = (1000.0, 850.0, 700.0, 550.0, 400.0, 300.0, 200.0, 100.0)
CURVE = ToleranceCurve((900.0, 100.0), (0.1, 0.3))
_WAN = "WanTransformer3DModel"
RATIOS = (1.0, *[0.98] * 49)

Checks = Callable[[], list[Check]]


def _of(*checks: list[Check]) -> list[Check]:
    return [check for each in checks for check in each]


DEEP = DepthPlan(
    source=PlanSource("p", "GaussianMixtureDenoiser", None, None, len(LEVELS), 2),
    timesteps=LEVELS,
    site="*",
    output="linear",
    inside="hold",
    calls=(0, 1, 3, 4, 6),
    parts=(PlacePart("a", 0.5, (0, 3)), PlacePart("b", 0.25, (0, 1, 6))),
    work=(5 - 0.5 * 3 - 0.25 * 2) / len(LEVELS),
    predicted=0.1,
    bound=0.1,
)

POLICIES: Mapping[str, Checks] = {
    "never": lambda: policy_checks(Never()),
    "uniform": lambda: _of(
        policy_checks(Uniform(every=3)),
        policy_checks(Uniform(evaluations=2), label="uniform-evaluations"),
    ),
    "sencache": lambda: _of(
        policy_checks(SenCache(epsilon=0.5, epsilon_start=0.2)),
        policy_checks(SenCache(epsilon=0.0), label="sencache-zero"),
        policy_checks(SenCache(epsilon=0.5), substitute="linear", scheduler="flow-euler", label="sencache-with-linear"),
        policy_checks(SenCache(epsilon="optimal:nfe=3"), timesteps=LEVELS, label="sencache-optimal"),
    ),
    "depth-schedule": lambda: policy_checks(
        DepthSchedule(DEEP), substitute=DEEP.substitute, site={"": "output", "a": "mlp", "b": "mlp"}, timesteps=LEVELS
    ),
    "schedule": lambda: policy_checks(Schedule(refreshes=(0, 2, 3, 6), num_steps=8), timesteps=LEVELS),
    "magcache": lambda: policy_checks(MagCache(threshold=0.3, retention_ratio=0.1, ratios=RATIOS)),
    "easycache": lambda: _of(
        policy_checks(EasyCache(threshold=0.8, first=0, last=0), substitute="residual"),
        policy_checks(EasyCache(), timesteps=LEVELS, label="easycache-defaults"),
    ),
    "seacache": lambda: _of(
        policy_checks(
            SeaCache(threshold=0.4, first=0, last=0), scheduler="flow-euler", signals={"spatial-latent": lambda x, t: x}
        ),
        policy_checks(SeaCache(threshold=0.0), scheduler="ddim", timesteps=LEVELS, label="seacache-zero"),
    ),
    "teacache": lambda: policy_checks(TeaCache(threshold=0.3, signal="modulated_input", coefficients=(1.0, 0.0))),
}

SUBSTITUTES: Mapping[str, Checks] = {
    "by-place": lambda: _specs(substitute_checks, "by-place:output='linear:time=path',inside=hold"),
    "hermite": lambda: _specs(substitute_checks, "hermite", "hermite:order=3,scale=0.6,differences=newton,unit=20.0"),
    "hold": lambda: _specs(substitute_checks, "hold"),
    "linear": lambda: _of(
        _specs(substitute_checks, "linear", "linear:time=log-snr,scheduler=ddim", "linear:time=path"),
        _specs(substitute_checks, "linear:correct=0.8", scheduler="flow-euler"),
    ),
    "quadratic": lambda: _specs(substitute_checks, "quadratic:time=t,guard=None"),
    "residual": lambda: _specs(substitute_checks, "residual"),
    "taylor": lambda: _specs(substitute_checks, "taylor:order=3", "taylor:order=2,differences=taylorseer"),
}


def _at_layers(site: str) -> Checks:
    """Return what makes the checks of a site at kinds of modules, on the class that has all of them.

    They differ in their modules alone: one has all of the checks, the others every fourth.
    """
    key = "LatteTransformer3DModel"
    every = 1 if site == "attention" else 4
    return lambda: site_checks(site, subjects=subject_of(key, TINY[key]), label=site)[::every]


SITES: Mapping[str, Checks] = {
    **{kind: _at_layers(kind) for kind in LAYERS},
    "block-range": lambda: site_checks("blocks[1:3]"),
    "skip-branch": lambda: site_checks("skip-branch", subjects=subject_of("unet", TINY["UNet2DConditionModel"])),
    "modules": lambda: site_checks("modules:pattern=blocks.*"),
    "output": lambda: site_checks("output"),
    "blocks": lambda: site_checks("blocks"),
    "module": lambda: _of(site_checks("module:path=blocks.1"), site_checks("module:path=embed", label="module-a-leaf")),
}

CLIPS = {"DDIMScheduler", "DDPMScheduler"}
"""What is not linear in the outputs by default: it clips."""

SCHEDULERS: Mapping[str, Checks] = {
    name: lambda name=name: scheduler_checks(name, linear=name not in CLIPS)
    for name in (
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
    )
} | {
    "ddim": lambda: _of(scheduler_checks("ddim"), scheduler_checks("ddim:eta=0.5", label="ddim-eta")),
    "ddpm": lambda: scheduler_checks("ddpm"),
    "flow-euler": lambda: scheduler_checks("flow-euler:shift=3.0"),
    "karras-euler": lambda: scheduler_checks("karras-euler"),
    "karras-heun": lambda: scheduler_checks("karras-heun:rho=3.0"),
}

TOLERANCES: Mapping[str, Checks] = {
    "constant": lambda: _specs(tolerance_checks, "constant:epsilon=0.1"),
    "two-phase": lambda: _specs(tolerance_checks, "two-phase:epsilon=0.3"),
    "optimal": lambda: _of(
        _specs(tolerance_checks, "optimal:nfe=4", timesteps=LEVELS),
        _specs(tolerance_checks, "optimal:target=0.02,weights=uniform", timesteps=LEVELS),
    ),
    "plan": lambda: tolerance_checks(Planned(plan=_plan())),
}

SCORES: Mapping[str, Checks] = {
    "bound": lambda: _specs(score_checks, "bound", "bound:interpolation=nearest"),
    "correlated": lambda: _specs(score_checks, "correlated"),
    "substitute": lambda: _of(
        _specs(score_checks, "substitute"),
        *(
            score_checks(LOADED.scores.create("substitute"), substitute=spec, label=f"substitute-{spec}")
            for spec in ("linear", "quadratic")
        ),
    ),
}

SIGNALS: Mapping[str, Checks] = {
    "spatial-latent": lambda: _specs(signal_checks, "spatial-latent"),
    "token-grid": lambda: _specs(signal_checks, "token-grid", subject=subject_of(_WAN, TINY[_WAN])),
}


def _specs(make: Callable[..., list[Check]], *specs: str, **options) -> list[Check]:
    registries: dict[Any, Registry[Any]] = {
        substitute_checks: LOADED.substitutes,
        tolerance_checks: LOADED.tolerances,
        score_checks: LOADED.scores,
        signal_checks: LOADED.signals,
    }
    return _of(*(make(registries[make].create(spec), label=spec, **options) for spec in specs))


def _plan():
    """A plan of the calibrated profile's model class."""
    return plan_of(LEVELS, (0, 4), model_class="GaussianMixtureDenoiser", tolerance=CURVE)


TABLES = {
    "policies": POLICIES,
    "substitutes": SUBSTITUTES,
    "sites": SITES,
    "schedulers": SCHEDULERS,
    "tolerances": TOLERANCES,
    "scores": SCORES,
    "signals": SIGNALS,
}


@pytest.mark.parametrize("kind", TABLES)
def test_everything_registered_is_checked(kind):
    ours = {entry.name for entry in getattr(LOADED, kind).entries() if entry.distribution == "cachepolicies"}
    missing, unknown = ours - TABLES[kind].keys(), TABLES[kind].keys() - ours
    assert not missing, f"add {sorted(missing)} to the table {kind.upper()} of tests/test_contracts.py"
    assert not unknown, f"{sorted(unknown)} of the table {kind.upper()} in tests/test_contracts.py are not registered"


def test_every_adapter_is_checked():
    ours = {entry.name for entry in LOADED.adapters.entries() if entry.distribution == "cachepolicies"}
    missing = ours - {key.partition("-")[0] for key in EVERY_TINY}
    assert not missing, f"add a tiny {sorted(missing)} to the table TINY of tests/tiny_models.py"


@parametrize_with_checks(make() for make in POLICIES.values())
def test_policies(check: Check):
    check()


@parametrize_with_checks(make() for make in SUBSTITUTES.values())
def test_substitutes(check: Check):
    check()


@parametrize_with_checks(make() for make in SITES.values())
def test_sites(check: Check):
    check()


@parametrize_with_checks(make() for make in SCHEDULERS.values())
def test_schedulers(check: Check):
    check()


@parametrize_with_checks([*(make() for make in TOLERANCES.values()), tolerance_checks(OfT(lambda t: t / 1000))])
def test_tolerance_schedules(check: Check):
    check()


@parametrize_with_checks(make() for make in SCORES.values())
def test_scores(check: Check):
    check()


@parametrize_with_checks(make() for make in SIGNALS.values())
def test_signals(check: Check):
    check()


@parametrize_with_checks(checks_of(key, tiny) for key, tiny in TINY.items())
def test_adapters(check: Check):
    check()

"""Weights of the steps: measured against exact propagation through a linear denoiser, bounded, stored, carried over."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from cachepolicies import CachedDenoiser, sample
from cachepolicies.base.errors import InputError, NeedsError, ProfileError, SettingsError
from cachepolicies.base.units import row_rms
from cachepolicies.calibration import (
    CalibrationSamples,
    calibrate,
    impulse_response,
    weight_steps,
)
from cachepolicies.cli import app
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.planning.weights import step_weights
from cachepolicies.profiles import Curve, SchedulerInfo, read_profile, save_profile, summarise
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.ddpm import DDPM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import from_class_name
from cachepolicies.schedulers.karras_euler import KarrasEuler
from cachepolicies.schedulers.karras_heun import KarrasHeun
from made_profiles import as_published

FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
UNIPC = from_class_name("UniPCMultistepScheduler", **FLOW, flow_shift=3.0)
DPM = from_class_name("DPMSolverMultistepScheduler", **FLOW)
STEPS = 8
pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

# diffusers' DPM-Solver++ and its ancestral sampler compute in float32, whatever they are given
CASES = [
    (FlowEuler(), 1e-11),
    (DDIM(), 1e-11),
    (DDIM(eta=0.6), 1e-11),
    (DDPM(), 1e-11),
    (KarrasEuler(), 1e-11),
    (KarrasHeun(), 1e-9),
    (UNIPC, 1e-9),
    (DPM, 2e-4),
    (from_class_name("EulerAncestralDiscreteScheduler"), 2e-4),
]
cases = pytest.mark.parametrize(("scheduler", "tolerance"), CASES, ids=lambda case: getattr(case, "name", ""))


def wide(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def slope(t: Any, sign: float = 1.0) -> Any:
    """a(t) of the linear denoiser, of one sign for every t."""
    return sign * (0.4 + 0.5 * abs(np.sin(t))) if isinstance(t, float) else sign * (0.4 + 0.5 * torch.sin(t).abs())


def linear(sign: float = 1.0):
    return lambda x, t: slope(wide(t, x), sign) * x + torch.cos(wide(t, x))


def make_samples(count: int = 3, dtype: torch.dtype = torch.float64, **more: Any) -> CalibrationSamples:
    return CalibrationSamples.from_seeds(range(count), (2, 3, 3), dtype=dtype, **more)


def profile_of(scheduler: Scheduler, model: Any = None, samples: Any = None, **more: Any) -> Any:
    more = {"num_steps": STEPS, "weights": True, "progress": False, "name": "p", "model_class": "m", **more}
    return calibrate(model or linear(), scheduler, samples or make_samples(), **more)


def exact(scheduler: Scheduler, num_steps: int = STEPS, sign: float = 1.0) -> np.ndarray:
    """What the error grows to: the sampler's linear response with the denoiser's own slope at every evaluation."""
    response = impulse_response(scheduler, num_steps)
    grown = []
    for k in response.first:
        output = np.zeros(len(response.t))
        output[k] = 1.0
        for j in range(k, len(response.t) - 1):
            output[j + 1] = slope(response.t[j + 1], sign) * (response.c[j] @ output)
        grown.append(abs(response.c[-1] @ output))
    return np.array(grown)


# ---------------------------------------------------------------------------------------------- against the exact ones


@cases
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_measured_weights_of_a_linear_denoiser_are_its_exact_propagation(scheduler, tolerance, sign):
    profile = profile_of(scheduler, linear(sign))
    weight = profile.curves["weight"]
    assert weight.t == profile.timesteps
    expected = exact(scheduler, sign=sign)
    assert weight.values == pytest.approx(np.tile(expected[:, None], 3), rel=tolerance)
    assert step_weights(profile) == pytest.approx(expected, rel=tolerance)
    assert step_weights(profile, "uniform").tolist() == [1.0] * STEPS


def test_euler_by_hand():
    """x' = x + (s' - s)(a x + cos t): an error d at step k is (s' - s) d, then grows by 1 + (s' - s) a a step."""
    sigmas = np.array([*FlowEuler().timesteps(STEPS), 0.0]) / 1000
    grown = [1 + (sigmas[j + 1] - sigmas[j]) * slope(1000 * float(sigmas[j])) for j in range(STEPS)]
    expected = [abs(sigmas[k + 1] - sigmas[k]) * abs(np.prod(grown[k + 1 :])) for k in range(STEPS)]
    assert step_weights(profile_of(FlowEuler())) == pytest.approx(np.array(expected), rel=1e-6)


@cases
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_bound_is_never_below_the_exact_weight(scheduler, tolerance, sign):
    bound = step_weights(profile_of(scheduler, linear(sign), weights=False), "bound", scheduler=scheduler)
    expected = exact(scheduler, sign=sign)
    # alpha_x at the last step is that of the step before where the denoiser is not evaluated at the sample
    slack = 1 + tolerance if scheduler.final_t is not None else 1.3
    assert (bound * slack >= expected).all()
    assert bound[-1] == pytest.approx(expected[-1], rel=1e-3)


def test_the_bound_is_the_exact_weight_where_all_of_it_has_one_sign():
    """Euler from t = 1000 to 0 with a < 0: every factor 1 + (s' - s) a is above 1."""
    profile = profile_of(FlowEuler(), linear(-1.0))
    assert step_weights(profile, "bound") == pytest.approx(exact(FlowEuler(), sign=-1.0), rel=1e-6)
    assert step_weights(profile, "bound") == pytest.approx(step_weights(profile), rel=1e-6)
    opposite = profile_of(FlowEuler(), linear(1.0))
    assert (step_weights(opposite, "bound")[:-2] > 1.05 * step_weights(opposite)[:-2]).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2**31))
def test_a_weight_predicts_what_a_reuse_does(steps, seed):
    """The change of the sample when one step is really reused, through the wrapper, is weight times hold error."""
    samples = CalibrationSamples.from_seeds([seed], (2, 3, 3), dtype=torch.float64)
    model = lambda x, t: torch.sin(x) * (1 + wide(t, x) / 1000)  # noqa: E731
    profile = profile_of(FlowEuler(), model, samples, num_steps=steps)
    plain = sample(model, FlowEuler(), samples.noise, num_steps=steps)
    for k in range(1, steps):
        called: list[Tensor] = []

        def reusing(x: Tensor, t: Tensor, k: int = k, called: list[Tensor] = called) -> Tensor:
            called.append(called[-1] if len(called) == k else model(x, t))
            return called[-1]

        changed = row_rms(sample(reusing, FlowEuler(), samples.noise, num_steps=steps) - plain)
        predicted = profile.curves["weight"].values[k] * profile.change[k - 1, k]
        assert predicted == pytest.approx(changed.numpy(), rel=1e-8, abs=1e-14)


# ---------------------------------------------------------------------------------------------- which steps


@given(st.integers(1, 60), st.integers(1, 59))
def test_a_stride_takes_every_mth_step_and_the_last_ones(steps, stride):
    if stride >= steps > 1:
        with pytest.raises(SettingsError, match=f"weights={stride} is not below the {steps} steps"):
            weight_steps(steps, stride)
        return
    chosen = weight_steps(steps, stride)
    if steps == 1:
        assert chosen == ()
        return
    assert sorted({*chosen}) == list(chosen)
    assert {*chosen} == {k for k in range(steps) if k % stride == 0 or k >= steps - stride}


def test_what_is_measured_by_default():
    assert weight_steps(50) == (0, 10, 20, 29, 39, 48, 49)
    assert weight_steps(6) == weight_steps(6, True) == tuple(range(6))
    assert weight_steps(8, False) == weight_steps(8, 0) == ()
    for steps in (2, 20, 50, 100, 250):
        assert sum(steps - 1 - k for k in weight_steps(steps)) <= 3 * steps


@pytest.mark.parametrize(("weights", "tolerance"), [(5, 0.05), (None, 0.25)])
@pytest.mark.parametrize("scheduler", [FlowEuler(), FlowEuler(shift=5.0), DDIM(), DDIM(spacing="trailing"), DDPM()])
def test_a_subset_of_steps_gives_the_same_weights_and_the_others_by_interpolation(scheduler, weights, tolerance):
    every = profile_of(scheduler, num_steps=50, model=lambda x, t: 0.7 * x + torch.cos(wide(t, x) / 300))
    some = profile_of(
        scheduler, num_steps=50, model=lambda x, t: 0.7 * x + torch.cos(wide(t, x) / 300), weights=weights
    )
    chosen = list(weight_steps(50, weights))
    assert np.array_equal(some.curves["weight"].values, every.curves["weight"].values[chosen])
    assert some.curves["weight"].t == tuple(every.timesteps[k] for k in chosen)
    assert step_weights(some)[chosen] == pytest.approx(step_weights(every)[chosen], rel=1e-12)
    assert step_weights(some) == pytest.approx(step_weights(every), rel=tolerance)


@pytest.mark.parametrize(
    ("scheduler", "tolerance"),
    [(FlowEuler(), 0.1), (FlowEuler(shift=3.0), 0.2), (DDIM(spacing="trailing"), 0.25), (DDIM(), 0.65)],
    ids=str,
)
@pytest.mark.parametrize("steps", [30, 100])
def test_another_number_of_steps_has_the_weights_that_it_would_have_measured(scheduler, tolerance, steps):
    """Up to the discretisation; DDIM's step to t = 0 is short of measured points, there and only there."""
    model = lambda x, t: 0.7 * x + torch.cos(wide(t, x) / 300)  # noqa: E731
    profile = profile_of(scheduler, model, num_steps=50)
    measured = step_weights(profile_of(scheduler, model, num_steps=steps))
    carried = step_weights(profile, timesteps=scheduler.timesteps(steps))
    assert carried == pytest.approx(measured, rel=tolerance)
    assert np.median(np.abs(carried / measured - 1)) < 0.1
    assert carried.sum() == pytest.approx(measured.sum(), rel=0.05)


def test_weights_are_interpolated_per_length_of_the_step():
    profile = profile_of(FlowEuler(), num_steps=4)
    ts = (8.0, 4.0, 2.0, 1.0)
    curve = Curve((8.0, 2.0, 1.0), [[8.0], [2.0], [0.0]])
    tables = {"displacement": profile.displacement, "change": profile.change}
    made = attrs.evolve(profile, timesteps=ts, final_t=0.5, curves={"weight": curve}, tables=tables)
    # densities 2, -, 2, 0 over lengths 4, 2, 1, 0.5; the second from its neighbours
    assert step_weights(made) == pytest.approx([8.0, 4.0, 2.0, 0.0], rel=1e-12, abs=0)
    # between a positive density and zero linearly; beyond the ends the density of the end
    assert step_weights(made, timesteps=(16.0, 1.5, 0.75)) == pytest.approx([2 * 14.5, 1 * 0.75, 0.0])
    halved = attrs.evolve(made, curves={"weight": Curve((8.0, 2.0, 1.0), [[8.0], [0.5], [0.125]])})
    # densities 2, 0.5, 0.25: the geometric mean half-way between calibrated steps 0 and 2, in steps and not in t
    assert step_weights(halved)[1] == pytest.approx(2 * math.sqrt(2 * 0.5))
    assert step_weights(halved, timesteps=(8.0, 4.0, 3.0)) == pytest.approx([8.0, 1.0, 2.5 * 2 * 0.25**0.75])


def test_a_last_step_without_length_keeps_its_weight():
    profile = profile_of(FlowEuler(), num_steps=3)
    last = profile.timesteps[-1]
    made = attrs.evolve(profile, final_t=last)
    assert step_weights(made) == pytest.approx(step_weights(profile), rel=1e-12)
    assert step_weights(made, timesteps=(900.0, last))[1] == step_weights(profile)[-1]


# ---------------------------------------------------------------------------------------------- how it is measured


def test_rho_is_the_cosine_between_the_two_changes():
    samples = make_samples(2)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return 2 * x + 3 * wide(t, x) / 1000

    parallel = profile_of(FlowEuler(), lambda x, t: -x * (1 + wide(t, x) / 1000), samples, num_steps=5)
    assert np.abs(parallel.curves["rho"].values).max() <= 1
    rho = profile_of(FlowEuler(), model, samples, num_steps=5).curves["rho"]
    xs, ts = [samples.noise], [*(t / 1000 for t in FlowEuler().timesteps(5)), 0.0]
    for now, following in pairwise(ts):
        xs.append(xs[-1] + (following - now) * (2 * xs[-1] + 3 * now))
    for k in range(5):
        dx = (xs[k + 1] - xs[k]).flatten(1)
        expected = -dx.mean(1) / dx.pow(2).mean(1).sqrt()  # t falls by the same for every element
        assert rho.values[k] == pytest.approx(expected.numpy(), rel=1e-6)


def test_rho_of_a_denoiser_that_does_not_see_t_is_the_papers_bound():
    assert (profile_of(FlowEuler(), lambda x, t: 0.5 * x).curves["rho"].values == 1).all()


def test_rho_of_changes_along_one_line_is_their_sign():
    """x falls with t as long as the output is positive."""
    samples = CalibrationSamples(torch.ones(2, 4, dtype=torch.float64), seeds=(0, 1))
    sign = profile_of(FlowEuler(), lambda x, t: 0.1 * x + 5 * wide(t, x) / 1000 + 3, samples)
    assert sign.curves["rho"].values == pytest.approx(1)
    sign = profile_of(FlowEuler(), lambda x, t: 0.1 * x - 5 * wide(t, x) / 1000 + 8, samples)
    assert sign.curves["rho"].values == pytest.approx(-1)


def test_the_same_output_as_the_step_before_is_replaced_by_one_that_differs():
    """The outputs of steps 2 and 3 are equal: step 3 is perturbed towards the output of step 1."""
    ts = FlowEuler().timesteps(5)

    def model(x: Tensor, t: Tensor) -> Tensor:
        frozen = (wide(t, x) == ts[2]) | (wide(t, x) == ts[3])
        return torch.where(frozen, torch.full_like(x, 0.5), 0.3 * x)

    weights = profile_of(FlowEuler(), model, num_steps=5).curves["weight"].values
    s = [*(t / 1000 for t in ts), 0.0]
    grown = [1 + (s[j + 1] - s[j]) * (0.0 if j in (2, 3) else 0.3) for j in range(5)]
    for k in range(5):
        assert weights[k] == pytest.approx(abs(s[k + 1] - s[k]) * np.prod(grown[k + 1 :]), rel=1e-6)


def test_an_output_that_never_changes_has_no_weights():
    gain = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    samples = make_samples(3, args=(gain,))
    model = lambda x, t, g: torch.where(wide(g, x) > 0, 0.3 * x, 1.0)  # noqa: E731
    with pytest.raises(ProfileError, match=r"the output is the same at every step for sample 2: .*weights=False"):
        profile_of(FlowEuler(), model, samples)
    assert "weight" not in profile_of(FlowEuler(), model, samples, weights=False).curves


def test_a_run_of_one_step_has_no_weights():
    assert "weight" not in profile_of(FlowEuler(), num_steps=1).curves


def test_noised_data_has_no_weights():
    samples = make_samples(data=torch.zeros(3, 2, 3, 3, dtype=torch.float64))
    profile = profile_of(FlowEuler(), samples=samples, trajectory="noised", weights=None)
    assert profile.curves.keys() == {"alpha_x", "alpha_t", "rho"}


def test_a_sample_that_overflows_is_named():
    begun: list[Any] = []

    class Fragile(FlowEuler):
        """Its second run and all later ones end in infinity for the last sample."""

        def begin(self, num_steps: int, **more: Any) -> Any:
            run: Any = super().begin(num_steps, **more)
            plain = run.advance

            def advance(output: Tensor, x: Tensor) -> Tensor:
                following = plain(output, x)
                if run.finished and len(begun) > 1:
                    following[-1] = math.inf
                return following

            begun.append(run)
            run.advance = advance
            return run

    with pytest.raises(
        InputError, match=r"the sample is not finite after the output of step 0 was perturbed.* 2, thou"
    ):
        profile_of(Fragile())
    assert len(begun) == 2


def test_weights_of_an_unfinished_calibration_are_kept(tmp_path):
    samples = make_samples(3)
    calls = 0

    def model(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise KeyboardInterrupt
        return linear()(x, t)

    fail_at = 3 * STEPS + 28 + 3 * STEPS + 20  # among the weights of the second sample
    with pytest.raises(KeyboardInterrupt):
        profile_of(DDPM(), model, samples, checkpoint=tmp_path)
    fail_at, calls = -1, 0
    resumed = profile_of(DDPM(), model, samples, checkpoint=tmp_path)
    assert calls == 2 * (3 * STEPS - 2 + 28)
    assert resumed == profile_of(DDPM(), samples=samples, batch_size=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_measure_the_same_up_to_their_rounding(dtype):
    expected = exact(FlowEuler())
    found = step_weights(profile_of(FlowEuler(), samples=make_samples(dtype=dtype)))
    assert found[:-1] == pytest.approx(expected[:-1], rel=1e-4 if dtype is torch.float32 else 0.25)


# ---------------------------------------------------------------------------------------------- stored and shown


def test_the_curves_survive_the_disk_and_are_shown_with_their_spread(tmp_path):
    profile = profile_of(FlowEuler(), lambda x, t: torch.sin(3 * x) * (1 + wide(t, x) / 1000))
    assert read_profile(save_profile(profile, tmp_path / "p.json")) == profile
    assert {"rho", "weight"} <= profile.units.keys()
    assert profile.change.dtype == np.float64
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summarise(profile))
    text = console.export_text()
    for name in ("rho", "weight"):
        curve = profile.curves[name]
        assert curve.spread().max() > 0
        assert f"{curve.mean()[0]:.4g}" in text
        assert f"{curve.spread()[0]:.4g}" in text


def test_a_profile_with_the_new_curves_serves_the_policies():
    profile = profile_of(FlowEuler(), num_steps=20)
    denoiser = CachedDenoiser(linear(), "sencache:epsilon=0.5,epsilon_start=0.5", profile=profile)
    sample(denoiser, FlowEuler(), make_samples().noise, num_steps=20)


WORKLOAD = """
import torch
from cachepolicies.comparison import Inputs, Workload


def inputs(seeds):
    rows = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return Inputs(noise=torch.stack(rows), data=torch.zeros(len(seeds), 4))


def build():
    return Workload("w", lambda x, t: x * (0.5 + t[:, None] / 2000), "flow-euler", 8, (4,), inputs, decode)


def decode(x):
    return x.sigmoid()[:, None]
"""


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ([], (0, 1, 3, 4, 6, 7)),
        (["--weights", "every"], range(8)),
        (["--weights", "3"], (0, 3, 5, 6, 7)),
        (["--weights", "none"], ()),
        (["--trajectory", "noised"], ()),
    ],
    ids=str,
)
def test_the_command_measures_what_it_is_told(tmp_path, monkeypatch, arguments, steps):
    (tmp_path / "workload_with_weights.py").write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    common = ["calibrate", "workload_with_weights:build", "--samples", "2", "--out", "p.json"]
    found = CliRunner().invoke(app, [*common, *arguments])
    assert found.exit_code == 0, found.output
    profile = read_profile("p.json")
    curve = profile.curves.get("weight")
    assert (curve.t if curve else ()) == tuple(profile.timesteps[k] for k in steps)
    for text in ("all", "0", "-1", "2.5"):
        refused = CliRunner().invoke(app, [*common, "--weights", text])
        assert refused.exit_code == 2
        assert f"--weights {text!r} is unknown; choose every, none, or every how many steps, as 5" in refused.stderr


# ---------------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def made():
    return profile_of(FlowEuler())


def without(profile, name):
    return attrs.evolve(profile, curves={key: curve for key, curve in profile.curves.items() if key != name})


def test_an_unknown_kind_lists_the_known_ones(made):
    with pytest.raises(SettingsError, match=r"weights 'measurd' are unknown: did you mean 'measured'\?"):
        step_weights(made, "measurd")  # type: ignore[arg-type]


def test_a_missing_curve_is_named(made):
    with pytest.raises(NeedsError, match=r"measured weights need the curve 'weight', which profile 'p' does not have"):
        step_weights(without(made, "weight"))
    with pytest.raises(NeedsError, match=r"bound weights need the curve 'alpha_x'"):
        step_weights(without(made, "alpha_x"), "bound")
    assert step_weights(without(made, "weight"), "uniform").tolist() == [1.0] * STEPS


def test_weights_that_are_no_step_of_the_profile(made):
    curves = {**made.curves, "weight": Curve((500.5,), [[1.0]])}
    with pytest.raises(ProfileError, match=r"curve 'weight' has a point at t = 500\.5, which is none of its timesteps"):
        step_weights(attrs.evolve(made, curves=curves))


def test_weights_without_any_length(made):
    last = made.timesteps[-1]
    bare = attrs.evolve(made, final_t=last, curves={"weight": Curve((last,), [[1.0]])})
    with pytest.raises(ProfileError, match="no step of a length that is known"):
        step_weights(bare)


@pytest.mark.parametrize("timesteps", [(1.0, 2.0), (1.0, 1.0), (math.nan,), (math.inf, 1.0)])
def test_timesteps_are_checked(made, timesteps):
    with pytest.raises(SettingsError, match="give finite numbers, strictly decreasing"):
        step_weights(made, timesteps=timesteps)


def test_timesteps_are_needed(made):
    with pytest.raises(NeedsError, match="need its timesteps: none are given"):
        step_weights(made, timesteps=())
    published = as_published(without(made, ""), timesteps=(), final_t=None, tables={})
    with pytest.raises(NeedsError, match="need its timesteps: profile 'p' has none, so give timesteps="):
        step_weights(published)


def test_a_bound_that_overflows_is_an_error(made):
    steep = attrs.evolve(made, curves={"alpha_x": Curve(made.timesteps, np.full((STEPS, 1), 1e99))})
    with pytest.raises(ProfileError, match=r"profile 'p': the bound weight of step 0, t = 1000, is inf; use other"):
        step_weights(steep, "bound")


def test_the_bound_needs_the_scheduler_of_the_run(made):
    for info, said in ((None, "does not say its scheduler"), (SchedulerInfo("own", "flow"), "'own', which is not reg")):
        bare = as_published(made, scheduler=info)
        with pytest.raises(NeedsError, match=said):
            step_weights(bare, "bound")
        assert np.array_equal(step_weights(bare, "bound", scheduler=FlowEuler()), step_weights(made, "bound"))
    with pytest.raises(
        SettingsError, match=r"scheduler 'flow-euler' visits t = .*, not the timesteps .*give scheduler="
    ):
        step_weights(made, "bound", scheduler=FlowEuler(shift=3.0))
    longer = step_weights(made, "bound", FlowEuler().timesteps(20))
    assert longer == pytest.approx(step_weights(profile_of(FlowEuler(), num_steps=20), "bound"), rel=0.1)

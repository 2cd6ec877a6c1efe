"""Calibration against closed forms, counted, interrupted, resumed, and given bad input."""

from __future__ import annotations

import io
import itertools
import json
import math
import weakref
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from attrs import field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from cachepolicies.base.errors import InputError, ProfileError, RunError, SettingsError
from cachepolicies.base.units import row_rms
from cachepolicies.calibration import (
    CalibrationSamples,
    calibrate,
    clear_checkpoint,
    evaluations_needed,
    weight_steps,
)
from cachepolicies.calibration import trajectory as trajectory_module
from cachepolicies.contracts.scheduler import SamplingRun, Scheduler
from cachepolicies.profiles import read_profile, save_profile


class EulerRun(SamplingRun):
    """Euler steps, or Heun steps whose last is an Euler step; noise of its own size if there are generators."""

    def __init__(self, ts: list[float], heun: bool, noise: float, generators: Any, dtype: torch.dtype) -> None:
        self.ts, self.heun, self.noise, self.generators, self.dtype = ts, heun, noise, generators, dtype
        self.k = 0
        self.start: Tensor | None = None
        self.slope = torch.zeros(())  # of the last first stage

    @property
    def finished(self) -> bool:
        return self.k == len(self.ts) - 1

    @property
    def t(self) -> float:
        return self.ts[self.k + self.stage]

    @property
    def stage(self) -> int:
        return 0 if self.start is None else 1

    def model_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.full((x.shape[0],), self.t, dtype=self.dtype)

    def advance(self, output: Tensor, x: Tensor) -> Tensor:
        dt = self.ts[self.k + 1] - self.ts[self.k]
        if self.heun and self.start is None and self.k < len(self.ts) - 2:
            self.start, self.slope = x, output
            return x + dt * output
        if self.start is not None:
            x, output = self.start, (self.slope + output) / 2
            self.start = None
        self.k += 1
        x = x + dt * output
        if self.noise:
            rows = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in self.generators]
            x = x + self.noise * torch.stack(rows)
        return x


@frozen
class Line(Scheduler):
    """x = (1 - t) data + t noise from t = 1 to 0 in even steps."""

    heun: bool = False
    noise: float = 0.0
    end: float | None = 0.0
    scale: float = 1.0
    dtype: torch.dtype = field(default=torch.float64, kw_only=True)
    announced: tuple[float, ...] | None = None

    name = "line"
    family = "flow"
    prediction_type = "velocity"

    @property
    def evaluations_per_step(self) -> int:
        return 2 if self.heun else 1

    @property
    def stochastic(self) -> bool:
        return self.noise > 0

    @property
    def config(self) -> Mapping[str, Any]:
        return {"heun": self.heun, "noise": self.noise}

    @property
    def final_t(self) -> float | None:
        return self.end

    def _ts(self, num_steps: int) -> list[float]:
        return [self.scale * (1 - k / num_steps) for k in range(num_steps + 1)]

    def timesteps(self, num_steps: int) -> tuple[float, ...]:
        return self.announced or tuple(self._ts(num_steps)[:-1])

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double() / self.scale

    def sigma(self, t: Tensor) -> Tensor:
        return t.double() / self.scale

    def begin(self, num_steps: int, *, generator: Any = None, device: Any = None) -> EulerRun:
        return EulerRun(self._ts(num_steps), self.heun, self.noise, generator, self.dtype)

    def initial(self, noise: Tensor, num_steps: int) -> Tensor:
        return noise


class Counted:
    """Counts rows and calls; can fail at a call."""

    def __init__(self, f: Any, fail_at: int | None = None) -> None:
        self.f, self.fail_at, self.rows, self.calls = f, fail_at, 0, 0
        self.model_class_name = "Counted"

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.rows += x.shape[0]
        return self.f(x, t, *args, **kwargs)


def wide(t: Tensor, x: Tensor) -> Tensor:
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def curved(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(2 * x) * (1 + wide(t, x)) + wide(t, x) ** 2


def make_samples(count: int = 4, shape: tuple[int, ...] = (2, 3, 3), **more: Any) -> CalibrationSamples:
    return CalibrationSamples.from_seeds(range(count), shape, dtype=more.pop("dtype", torch.float64), **more)


def run(model: Any, scheduler: Scheduler | None = None, samples: CalibrationSamples | None = None, **more: Any) -> Any:
    more = {"num_steps": 6, "progress": False, "weights": False, **more}
    return calibrate(model, scheduler or Line(), samples or make_samples(), **more)


# ---------------------------------------------------------------------------------------------- units


@given(st.integers(1, 4), st.integers(1, 5), st.floats(-1e3, 1e3))
def test_row_rms_of_a_constant_is_its_size(batch: int, size: int, value: float) -> None:
    assert torch.allclose(row_rms(torch.full((batch, size, 2), value)), torch.full((batch,), abs(value)))


def test_row_rms_does_not_depend_on_tiling_and_is_wide() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    assert torch.allclose(row_rms(x), row_rms(x.repeat(1, 2, 3)))
    assert torch.allclose(row_rms(x), x.flatten(1).pow(2).mean(1).sqrt())
    assert row_rms(x).dtype == torch.float64
    half = torch.full((2, 4096), 300.0, dtype=torch.float16)  # the squares overflow in half precision
    assert row_rms(half).tolist() == [300.0, 300.0]
    assert row_rms(half).dtype == torch.float32
    assert row_rms(torch.tensor([-2.0, 3.0])).tolist() == [2.0, 3.0]


# ---------------------------------------------------------------------------------------------- closed forms


@settings(max_examples=25, deadline=None)
@given(
    slope=st.floats(-3, 3).filter(lambda a: abs(a) > 0.05),
    drift=st.floats(-3, 3),
    steps=st.integers(2, 8),
    heun=st.booleans(),
)
def test_a_linear_denoiser_has_exact_sensitivities(slope: float, drift: float, steps: int, heun: bool) -> None:
    profile = run(lambda x, t: slope * x + drift * wide(t, x), Line(heun=heun), num_steps=steps)
    assert profile.alpha_x.values == pytest.approx(abs(slope), rel=1e-9)
    assert profile.alpha_t.values == pytest.approx(abs(drift), rel=1e-9, abs=1e-12)
    assert profile.alpha_x.t == profile.timesteps


def test_sensitivities_that_depend_on_t_and_sample_match_an_independent_loop() -> None:
    samples = make_samples(3)
    steps = 5
    profile = run(lambda x, t: (1 + wide(t, x)) * x + wide(t, x) ** 2, samples=samples, num_steps=steps, batch_size=2)
    ts = [1 - k / steps for k in range(steps + 1)]
    xs = [samples.noise]
    for now, following in itertools.pairwise(ts):
        xs.append(xs[-1] + (following - now) * ((1 + now) * xs[-1] + now**2))
    fs = [(1 + t) * x + t**2 for t, x in zip(ts, xs, strict=True)]

    def rms(v: Tensor) -> np.ndarray:
        return v.flatten(1).pow(2).mean(1).sqrt().numpy()

    for k in range(steps):
        dt = ts[k + 1] - ts[k]
        assert profile.alpha_x.values[k] == pytest.approx(1 + ts[k], rel=1e-9)
        assert profile.alpha_t.values[k] == pytest.approx(rms(dt * xs[k] + ts[k + 1] ** 2 - ts[k] ** 2) / -dt, rel=1e-9)
        for r in range(steps):
            assert profile.displacement[r, k] == pytest.approx(rms(xs[k] - xs[r]), rel=1e-12)
            assert profile.change[r, k] == pytest.approx(rms(fs[k] - fs[r]), rel=1e-12)
        dx = (1 + ts[k]) * (xs[k + 1] - xs[k])
        df = dt * xs[k] + ts[k + 1] ** 2 - ts[k] ** 2
        cosine = (dx * df).flatten(1).mean(1).numpy() / rms(dx) / rms(df)
        assert profile.curves["rho"].values[k] == pytest.approx(cosine, rel=1e-9)
    assert profile.displacement.dtype == profile.change.dtype == np.float64
    assert len({*profile.alpha_t.values[0].tolist()}) == 3  # per sample, not averaged


def test_noised_data_moves_along_the_forward_process() -> None:
    samples = make_samples(3, data=torch.randn(3, 2, 3, 3, dtype=torch.float64))
    model = Counted(lambda x, t: 2 * x + 3 * wide(t, x))
    profile = run(model, Line(scale=1000.0), samples, trajectory="noised", num_steps=4)
    assert profile.alpha_x.values == pytest.approx(2)
    assert profile.alpha_t.values == pytest.approx(3)
    assert samples.data is not None
    moved = row_rms(samples.noise - samples.data).numpy()
    for r in range(4):
        for k in range(4):
            assert profile.displacement[r, k] == pytest.approx(abs(r - k) / 4 * moved, rel=1e-5)
    assert profile.trajectory == "noised"
    assert model.rows == 3 * 12


def test_half_precision_latents_are_subtracted_in_float32() -> None:
    profile = run(lambda x, t: x, samples=make_samples(dtype=torch.bfloat16), num_steps=3)
    assert profile.alpha_x.values == pytest.approx(1)  # the identity, whatever the rounding of x
    assert profile.dtype == "bfloat16"


# ---------------------------------------------------------------------------------------------- counting


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(2, 6),
    count=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    heun=st.booleans(),
    end=st.sampled_from([0.0, None]),
    trajectory=st.sampled_from(["model", "noised"]),
    weights=st.sampled_from([None, False, True, 2]),
)
def test_evaluations_are_counted_exactly(
    steps: int, count: int, batch_size: int, heun: bool, end: float | None, trajectory: Any, weights: Any
) -> None:
    if (trajectory == "noised" and weights) or weights == steps:  # refused
        weights = None
    scheduler = Line(heun=heun, end=end)
    samples = make_samples(count, data=torch.zeros(count, 2, 3, 3, dtype=torch.float64))
    model = Counted(curved)
    more = {"num_steps": steps, "batch_size": batch_size, "trajectory": trajectory, "weights": weights}
    profile = run(model, scheduler, samples, **more)
    needed = evaluations_needed(scheduler, steps, count, trajectory, weights)
    assert model.rows == needed.total
    assert profile.evaluations == needed.per_sample
    pairs = steps if end is not None else steps - 1
    extra = steps - 1 if heun and trajectory == "model" else 0
    weighed = () if trajectory == "noised" else weight_steps(steps, weights)
    assert needed.weights == sum((steps - 1 - k) * (2 if heun else 1) for k in weighed)
    assert needed.per_sample == steps + 2 * pairs + extra + needed.weights
    assert needed.per_sample - needed.extra_stages - needed.weights <= 3 * steps
    assert profile.curves.keys() == {"alpha_x", "alpha_t", "rho"} | ({"weight"} if weighed else set())
    if weighed:
        assert profile.curves["weight"].t == tuple(profile.timesteps[k] for k in weighed)
    assert len(profile.alpha_x.t) == len(profile.alpha_t.t) == pairs


def test_the_count_is_said_up_front() -> None:
    screen = io.StringIO()
    run(curved, Line(heun=True), num_steps=5, progress=True, console=Console(file=screen, width=200), name="demo")
    text = screen.getvalue()
    assert "calibrating demo: 76 denoiser evaluations: 4 samples x 19 " in text
    assert "(5 steps + 4 for the sampler's own further stages + 10 for finite differences)" in text
    assert "76/76" in text
    screen = io.StringIO()
    run(curved, Line(heun=True), num_steps=5, progress=True, console=Console(file=screen, width=200), weights=True)
    assert "156 denoiser evaluations: 4 samples x 39 " in screen.getvalue()
    assert "+ 10 for finite differences + 20 for weights)" in screen.getvalue()
    assert "156/156" in screen.getvalue()


def test_final_t_equal_to_the_last_t_is_no_next_point() -> None:
    profile = run(curved, Line(end=0.25), num_steps=4)
    assert profile.alpha_x.t == (1.0, 0.75, 0.5)


# ---------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_deterministic_and_independent_of_the_batch_size(noise: float) -> None:
    profiles = [run(curved, Line(noise=noise), batch_size=b, name="p", weights=True) for b in (4, 4, 3, 1)]
    assert profiles[0] == profiles[1]
    for other in profiles[2:]:
        for name in ("alpha_x", "alpha_t", "rho", "weight"):
            assert other.curves[name].values == pytest.approx(profiles[0].curves[name].values, rel=1e-9)
        for name in ("displacement", "change"):
            assert other.tables[name] == pytest.approx(profiles[0].tables[name], rel=1e-9)


def test_seeds_choose_the_noise_of_a_stochastic_sampler() -> None:
    one = run(curved, Line(noise=0.3))
    other = run(curved, Line(noise=0.3), seeds=(9, 8, 7, 6))
    assert other.seeds == (9, 8, 7, 6)
    assert not np.array_equal(one.alpha_x.values, other.alpha_x.values)
    with pytest.raises(SettingsError, match=r"'line' draws noise, so calibration needs a seed per sample"):
        run(curved, Line(noise=0.3), CalibrationSamples(torch.randn(4, 2, 3, 3)))


def test_conditioning_is_sliced_with_its_sample() -> None:
    gain = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    seen = []

    def model(x: Tensor, t: Tensor, nested: Any, *, table: Tensor, flag: str) -> Any:
        seen.append((nested["g"][0].shape, table.shape, flag))
        return (wide(nested["g"][0], x) * x, "extra")

    samples = make_samples(3, args=({"g": [gain, 5]},), kwargs={"table": torch.zeros(7, 2), "flag": "on"})
    profile = run(model, samples=samples, batch_size=2)
    assert profile.alpha_x.values == pytest.approx(np.tile(gain.numpy(), (6, 1)))
    assert {shape[0] for shape, _, _ in seen} == {2, 1}
    assert {(tuple(table), flag) for _, table, flag in seen} == {((7, 2), "on")}


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y, 1), lambda y: [y], lambda y: SimpleNamespace(sample=y)])
def test_every_form_of_output(wrap: Any) -> None:
    assert run(lambda x, t: wrap(2 * x)).alpha_x.values == pytest.approx(2)


def test_a_module_that_writes_into_its_buffer_is_measured_all_the_same() -> None:
    buffer = torch.zeros(4, 2, 3, 3, dtype=torch.float64)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.mul(x, 1 + wide(t, x), out=buffer)

    plain = run(lambda x, t: x * (1 + wide(t, x)), name="p", model_class="m", weights=True)
    assert run(model, name="p", model_class="m", weights=True) == plain


def test_one_batch_bounds_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the denoiser is called, no points of another batch are alive, and a batch holds N + 1 at most."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    held: list[tuple[int, int, int]] = []
    plain = trajectory_module.TrajectoryPoints

    def tracked() -> Any:
        points = plain()
        alive.add(points)
        return points

    def model(x: Tensor, t: Tensor) -> Tensor:
        held.extend((len(alive), len(points.x), points.x[0].shape[0]) for points in alive if points.x)
        return curved(x, t)

    monkeypatch.setattr(trajectory_module, "TrajectoryPoints", tracked)
    run(model, samples=make_samples(6), num_steps=3, batch_size=2)
    assert max(held) == (1, 4, 2)


# ---------------------------------------------------------------------------------------------- resuming


def test_an_interrupted_calibration_resumes_where_it_was(tmp_path: Any) -> None:
    samples = make_samples(5)
    whole = run(Counted(curved), samples=samples, batch_size=2)
    place = tmp_path / "part"
    # a batch of two takes 6 + 12 calls: the 20th is in the second
    with pytest.raises(KeyboardInterrupt):
        run(Counted(curved, fail_at=20), samples=samples, batch_size=2, checkpoint=place)
    assert [p.name for p in place.glob("samples-*")] == ["samples-00000-00002.safetensors"]
    again = Counted(curved)
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    resumed = run(again, samples=samples, batch_size=2, checkpoint=place, progress=True, console=console)
    assert resumed == whole
    assert again.rows == 3 * 18
    assert "2 samples are done already" in screen.getvalue()
    assert "90/90" in screen.getvalue()
    idle = Counted(curved)
    assert run(idle, samples=samples, batch_size=2, checkpoint=place) == whole
    assert idle.rows == 0
    clear_checkpoint(place)
    assert not place.exists()


def test_a_smaller_batch_may_finish_what_a_larger_one_began(tmp_path: Any) -> None:
    samples = make_samples(5)
    with pytest.raises(KeyboardInterrupt):
        run(Counted(curved, fail_at=20), samples=samples, batch_size=3, checkpoint=tmp_path)
    model = Counted(curved)
    profile = run(model, samples=samples, batch_size=1, checkpoint=tmp_path)
    assert model.rows == 2 * 18
    assert profile.alpha_x.values == pytest.approx(run(curved, samples=samples).alpha_x.values, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_steps": 5}, "timesteps: "),
        ({"samples": make_samples(5)}, "samples: 4 there, 5 here"),
        ({"guidance": 2.0}, "guidance: null there, 2.0 here"),
        ({"weights": 2}, "weights: [] there, [0, 2, 4, 5] here"),
        ({"scheduler": Line(noise=0.1)}, "scheduler: "),
        ({"samples": CalibrationSamples(torch.ones(4, 2, 3, 3).double(), seeds=range(4))}, "inputs: "),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Any, change: dict[str, Any], said: str) -> None:
    run(Counted(curved), checkpoint=tmp_path)
    model = Counted(curved)
    with pytest.raises(ProfileError) as caught:
        run(model, checkpoint=tmp_path, **change)
    assert f"checkpoint {tmp_path}: belongs to a calibration with other settings" in str(caught.value)
    assert said in str(caught.value)
    assert "clear_checkpoint" in str(caught.value)
    assert model.rows == 0


def _truncate(place: Any) -> None:
    path = place / "partial.json"
    path.write_bytes(path.read_bytes()[:-20])


def _corrupt(place: Any) -> None:
    path = next(place.glob("samples-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def _lose(place: Any) -> None:
    next(place.glob("samples-*")).unlink()


def _gap(place: Any) -> None:
    index = json.loads((place / "partial.json").read_text())
    index["batches"][0]["start"] = 1
    (place / "partial.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_truncate, "not valid JSON"), (_corrupt, "sha256"), (_lose, "cannot be read"), (_gap, "where 0 comes next")],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Any, damage: Any, said: str) -> None:
    run(Counted(curved), checkpoint=tmp_path)
    damage(tmp_path)
    with pytest.raises(ProfileError, match=said) as caught:
        run(Counted(curved), checkpoint=tmp_path)
    assert "damaged; clear it" in str(caught.value)


def test_a_checkpoint_that_is_a_file_is_refused(tmp_path: Any) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ProfileError, match="is a file; give a folder"):
        run(curved, checkpoint=tmp_path / "f")


# ---------------------------------------------------------------------------------------------- bad input


def test_a_non_finite_output_names_t_and_sample_and_keeps_the_checkpoint(tmp_path: Any) -> None:
    samples = make_samples(5, kwargs={"row": torch.arange(5)})

    def model(x: Tensor, t: Tensor, row: Tensor) -> Tensor:
        bad = (row == 3) & (t < 0.6)
        return torch.where(wide(bad, x) > 0, math.inf, curved(x, t))

    with pytest.raises(InputError) as caught:
        run(model, samples=samples, num_steps=4, batch_size=2, checkpoint=tmp_path, model_class="m")
    assert "non-finite output during calibration at t = 0.5 for sample 3" in str(caught.value)
    good = Counted(lambda x, t, row: curved(x, t))
    run(good, samples=samples, num_steps=4, batch_size=2, checkpoint=tmp_path, model_class="m")
    assert good.rows == 3 * 12


def test_x_that_stands_still_is_an_error_not_nan() -> None:
    with pytest.raises(ProfileError, match=r"x does not change between t = 1 and the next point, t = 0\.8.*sample 2"):
        run(lambda x, t, m: x * wide(m, x), samples=make_samples(4, args=(torch.tensor([1, 1, 0, 1]),)), num_steps=5)


def test_a_sampler_that_diverges_is_named() -> None:
    with pytest.raises(InputError, match=r"x is not finite after t = 1e\+20 for sample 0"):
        run(lambda x, t: x * 1e300, samples=make_samples(1), scheduler=Line(scale=1e20), num_steps=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trajectory": "backwards"}, "trajectory='backwards' is unknown; choose 'model' or 'noised'"),
        ({"batch_size": 0}, "batch_size=0; give a positive integer"),
        ({"batch_size": True}, "batch_size=True"),
        ({"trajectory": "noised"}, "needs clean latents"),
        ({"scheduler": Line(end=None), "num_steps": 1}, "leaves no step to difference along"),
        ({"seeds": (1, 2)}, "2 seeds for 4 calibration samples"),
        ({"weights": -1}, "weights=-1; give True, False, or every how many steps as a whole number"),
        ({"weights": 2.5}, "weights=2.5; give True"),
        ({"weights": "every"}, "weights='every'; give True"),
        ({"weights": 6}, "weights=6 is not below the 6 steps of the run"),
        (
            {"weights": True, "trajectory": "noised", "samples": make_samples(data=torch.zeros(4, 2, 3, 3))},
            "weights=True with trajectory='noised'",
        ),
    ],
)
def test_bad_settings_compute_nothing(arguments: dict[str, Any], said: str) -> None:
    model = Counted(curved)
    with pytest.raises(SettingsError) as caught:
        run(model, **arguments)
    assert said in str(caught.value)
    assert model.calls == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"noise": torch.ones(2, 3, dtype=torch.int64)}, "noise has dtype torch.int64"),
        ({"noise": torch.ones(3)}, "noise has shape (3,)"),
        ({"noise": torch.ones(0, 3)}, "noise has shape (0, 3)"),
        ({"noise": torch.ones(2, 3), "data": torch.ones(2, 4)}, "data has shape (2, 4), noise (2, 3)"),
    ],
)
def test_bad_samples(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        CalibrationSamples(**fields)
    assert said in str(caught.value)


def test_outputs_that_are_no_prediction() -> None:
    with pytest.raises(InputError, match="returned a str"):
        run(lambda x, t: "y")
    with pytest.raises(InputError, match=r"returned shape \(1, 2, 3, 3\) for a batch of 4"):
        run(lambda x, t: x[:1])


def test_a_scheduler_that_announces_other_timesteps_is_refused() -> None:
    with pytest.raises(RunError, match=r"'line' visited t = \[1\.0, 0\.75, 0\.5, 0\.25\] in 4 steps, but"):
        run(curved, Line(announced=(1.0, 0.7, 0.5, 0.25)), num_steps=4)


def test_a_fractional_final_t_does_not_fit_integer_timesteps() -> None:
    with pytest.raises(RunError, match=r"passes t as torch\.int64 but has final_t = -0\.5"):
        run(curved, Line(scale=4.0, end=-0.5, dtype=torch.int64), num_steps=4)


# ---------------------------------------------------------------------------------------------- the profile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.config = {"width": 1, "_diffusers_version": "0"}

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.gain * x


def test_the_profile_says_what_was_calibrated_and_survives_the_disk(tmp_path: Any) -> None:
    net = Net().eval()
    profile = run(net, guidance=2.0, notes="a note")
    assert not any(p.grad is not None for p in net.parameters())
    assert profile.name == "net-line-6"
    assert profile.model.class_name == "Net"
    assert len(profile.model.config_hash) == len(profile.model.weights_hash) == 64
    assert (profile.prediction_type, profile.scheduler.family, profile.final_t) == ("velocity", "flow", 0.0)
    assert (profile.latent_shape, profile.dtype, profile.guidance) == ((2, 3, 3), "float64", 2.0)
    assert (profile.samples, profile.seeds, profile.notes) == (4, (0, 1, 2, 3), "a note")
    assert {"python", "torch", "numpy"} <= profile.versions.keys()
    assert read_profile(save_profile(profile, tmp_path / "p.json")) == profile
    assert run(net, hash_weights=False).model.weights_hash is None
    assert run(net, model_class="Other").model.class_name == "Other"
    assert "training mode" in run(Net()).notes
    assert attrs.evolve(profile, created="x") == profile


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("flow_euler:FlowEuler", {"shift": 3.0}),
        ("ddim:DDIM", {}),
        ("ddpm:DDPM", {}),
        ("karras_euler:KarrasEuler", {}),
        ("karras_heun:KarrasHeun", {}),
    ],
)
@pytest.mark.parametrize("trajectory", ["model", "noised"])
def test_the_native_schedulers_are_counted_exactly(module: str, settings: dict[str, Any], trajectory: Any) -> None:
    import importlib

    file, name = module.split(":")
    scheduler = getattr(importlib.import_module(f"cachepolicies.schedulers.{file}"), name)(**settings)
    samples = make_samples(2, data=torch.zeros(2, 2, 3, 3), dtype=torch.float32)
    model = Counted(lambda x, t: 0.3 * x)
    profile = run(model, scheduler, samples, num_steps=5, trajectory=trajectory, weights=None)
    assert model.rows == evaluations_needed(scheduler, 5, 2, trajectory).total
    assert profile.alpha_x.values == pytest.approx(0.3, rel=1e-3)
    assert profile.alpha_t.values == pytest.approx(0, abs=1e-6)
    assert profile.timesteps == scheduler.timesteps(5)


@pytest.mark.parametrize(
    "name",
    ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler", "DDPMScheduler"],
)
def test_diffusers_schedulers_are_counted_exactly(name: str) -> None:
    from cachepolicies.schedulers.from_diffusers import from_class_name

    scheduler = from_class_name(name)
    model = Counted(lambda x, t: 0.3 * x)
    profile = run(model, scheduler, make_samples(2, dtype=torch.float32), num_steps=5, weights=None)
    assert model.rows == evaluations_needed(scheduler, 5, 2).total
    assert profile.alpha_x.values == pytest.approx(0.3, rel=1e-3)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 3), st.integers(1, 4))
def test_tiling_the_latent_changes_nothing(rows: int, columns: int) -> None:
    samples = make_samples(2)
    tiled = attrs.evolve(samples, noise=samples.noise.repeat(1, 1, rows, columns))
    one, other = run(curved, samples=samples, num_steps=3), run(curved, samples=tiled, num_steps=3)
    assert other.alpha_x.values == pytest.approx(one.alpha_x.values, rel=1e-9)
    assert other.tables["change"] == pytest.approx(one.tables["change"], rel=1e-5)


def test_an_interrupted_calibration_resumes_with_the_default_settings(tmp_path: Any) -> None:
    """With a checkpoint a batch is one sample: what was finished is not lost."""
    calls: list[int] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return 0.5 * x + t[:, None] / 1000

    samples = CalibrationSamples.from_seeds(range(4), (3,))
    fail_at = 60
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, "flow-euler", samples, num_steps=5, checkpoint=tmp_path, progress=False, name="m")
    fail_at, before = -1, len(calls)
    resumed = calibrate(model, "flow-euler", samples, num_steps=5, checkpoint=tmp_path, progress=False, name="m")
    assert set(calls) == {1}
    assert (
        len(calls) - before == 2 * 25
    )  # two of four samples were finished, at 3 evaluations a step and 10 for weights
    assert resumed == calibrate(model, "flow-euler", samples, num_steps=5, batch_size=1, progress=False, name="m")

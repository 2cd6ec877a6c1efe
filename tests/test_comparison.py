"""`compare` on a small analytic denoiser: counts, distances, matching, files and the report."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from importlib import metadata
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cachepolicies.base.errors import InputError, NeedsError, RunError, SettingsError, UnknownNameError
from cachepolicies.calibration import CalibrationSamples, calibrate
from cachepolicies.comparison import Candidate, Inputs, Workload, _extras, compare, load_workload, matched_baselines
from cachepolicies.comparison.metrics import psnr, ssim
from cachepolicies.comparison.report import rendered_report, write_all
from cachepolicies.reference import moving_digits
from cachepolicies.reference.guided import GuidedDenoiser
from cachepolicies.reference.workloads import image_dit, image_inputs, video_accuracy, video_dit, video_inputs

SHAPE = (2, 12, 12)
STEPS = 12


def pull(x, t, centre):
    """Velocity of a Gaussian of variance 0.25 around ``centre`` under flow matching, t in [0, 1000]."""
    sigma = (t / 1000)[:, None, None, None]
    alpha = 1 - sigma
    noise = sigma * (x - alpha * centre) / (0.25 * alpha.square() + sigma.square())
    data = centre + 0.25 * alpha * (x - alpha * centre) / (0.25 * alpha.square() + sigma.square())
    return noise - data


def tiny_inputs(seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    centre = torch.stack([torch.rand(1, 1, 1, generator=g) for g in generators])
    noise = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    return Inputs(noise=noise, args=(centre,), labels={"centre": centre[:, 0, 0, 0]})


def nearness(samples, inputs):
    """1 minus the distance of the mean from the centre; not defined where the centre is below one half."""
    distance = (samples.mean(dim=(1, 2, 3)) - inputs.labels["centre"]).abs()
    return torch.where(inputs.labels["centre"] >= 0.5, 1 - distance, math.nan)


def tiny(**changed):
    options: dict[str, Any] = {
        "name": "tiny",
        "denoiser": pull,
        "scheduler": "flow-euler",
        "num_steps": STEPS,
        "latent_shape": SHAPE,
        "inputs": tiny_inputs,
        "decode": lambda x: x.clamp(0, 1),
        "scores": {"nearness": nearness},
    }
    return Workload(**(options | changed))


def profile_of(workload):
    seeds = range(100, 103)
    drawn = workload.draw(seeds)
    samples = CalibrationSamples(noise=drawn.noise, args=drawn.args, seeds=seeds)
    return calibrate(workload.denoiser, workload.scheduler, samples, num_steps=workload.num_steps, progress=False)


@pytest.fixture(scope="module")
def profile():
    return profile_of(tiny())


SENCACHE = "sencache:epsilon=0.2,max_reuse=2,start_fraction=0.0"


@pytest.fixture(scope="module")
def comparison(profile):
    candidates = [
        Candidate("careful", "sencache:epsilon=0.05", profile=profile),
        Candidate("bold", SENCACHE, profile=profile),
    ]
    return compare(tiny(), candidates, range(5), batch_size=3, repeats=2, audited=3, shown=2, progress=False)


def by_label(comparison):
    return {result.label: result for result in comparison.results}


def test_the_uncached_result_is_the_bare_model(comparison):
    uncached = comparison.uncached
    assert (uncached.label, uncached.kind, uncached.policy) == ("uncached", "uncached", "")
    assert uncached.nfe == (STEPS,) * 5
    assert uncached.model_calls == 2 * STEPS  # two batches
    assert comparison.speed_up(uncached) == 1.0
    assert all(math.isinf(value) for value in uncached.psnr)


def fork(x, t, centre):
    """A velocity that pushes every sample off 0, the more the nearer: one that starts there is near a bifurcation."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return 10 * x - 60 * torch.tanh(10 * mean) * torch.ones_like(x)


def test_samples_near_a_bifurcation_are_unstable_and_the_others_are_not():
    def inputs(seeds):
        drawn = tiny_inputs(seeds)
        noise = drawn.noise - drawn.noise.mean(dim=(1, 2, 3), keepdim=True)
        start = torch.tensor([0.0 if seed % 2 else 1.0 for seed in seeds]).reshape(-1, 1, 1, 1)
        return Inputs(noise=0.1 * noise + start, args=drawn.args)

    found = compare(
        tiny(denoiser=fork, inputs=inputs, scores={}, decode=lambda x: torch.sigmoid(x)),
        [Candidate("every other", "uniform:every=2")],
        range(12),
        batch_size=5,
        baselines=False,
        audited=0,
        progress=False,
    )
    one = by_label(found)["every other"]
    pairs = zip(found.moved, one.psnr, strict=True)
    assert found.unstable(one) == tuple(moved <= own and math.isfinite(own) for moved, own in pairs)
    even, odd = found.moved[::2], found.moved[1::2]
    assert min(even) > 50 > min(odd)
    assert sum(found.unstable(one)) > 0
    assert found.unstable(found.uncached) == (False,) * 12
    row = found.rows()[1]
    assert row["unstable"] == sum(found.unstable(one))
    stable = [own for own, moves in zip(one.psnr, found.unstable(one), strict=True) if not moves]
    assert row["psnr_worst_stable"] == min(stable)
    assert found.to_dict()["rows"][1]["per_sample"]["unstable"] == list(found.unstable(one))


def test_a_sample_that_is_not_moved_is_not_unstable():
    found = compare(tiny(), [Candidate("none", "never")], range(3), baselines=False, audited=0, progress=False)
    assert all(math.isfinite(moved) for moved in found.moved)
    assert found.unstable(by_label(found)["none"]) == (False,) * 3


def test_what_moves_a_sample_does_not_depend_on_its_batch():
    found = [
        compare(
            tiny(),
            [Candidate("uniform", "uniform:every=2")],
            range(4),
            batch_size=size,
            baselines=False,
            audited=0,
            progress=False,
        ).moved
        for size in (1, 4)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_evaluations_of_the_table_agree_with_a_count_of_rows(profile):
    rows = 0

    def counted(x, t, centre):
        nonlocal rows
        rows += len(x)
        return pull(x, t, centre)

    counted.__qualname__ = pull.__qualname__  # the profile was made for this class
    found = compare(
        tiny(denoiser=counted),
        [Candidate("one", SENCACHE, profile=profile)],
        range(5),
        audited=0,
        stability=False,
        progress=False,
    )
    warm_up, timed_again = 5, STEPS * 5  # the uncached row is timed at both ends
    assert rows - warm_up - timed_again == sum(sum(result.nfe) for result in found.results)
    one = by_label(found)["one"]
    assert sum(one.nfe) < 5 * STEPS
    assert one.mean_nfe == pytest.approx(one.traces[0].nfe)
    assert one.cache_ratio == pytest.approx(one.traces[0].cache_ratio)


def test_a_model_that_calls_itself_is_found_out():
    # The wrapper is handed to the denoiser's own caller by no one, so the count is falsified through it instead.
    from cachepolicies.comparison import _passes

    class Forgetful(_passes.CountedDenoiser):
        def __call__(self, x, t, *args, **kwargs):
            super().__call__(x, t, *args, **kwargs)
            return super().__call__(x, t, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_passes, "CountedDenoiser", Forgetful)
        with pytest.raises(RunError, match=r"evaluated 24 times on 24 rows, but the sampler counts 12 evalu"):
            compare(tiny(), [Candidate("u", "uniform:every=2")], [0], progress=False)


def test_baselines_take_as_many_evaluations_as_the_policy(comparison):
    results = by_label(comparison)
    bold = results["bold"]
    wanted = round(bold.mean_nfe)
    assert 1 < wanted < STEPS
    fewer, uniform = results[f"fewer steps ({wanted})"], results[f"uniform ({wanted})"]
    assert (fewer.kind, fewer.num_steps, fewer.mean_nfe, fewer.cache_ratio) == ("fewer steps", wanted, wanted, 0.0)
    assert (uniform.kind, uniform.num_steps, uniform.mean_nfe) == ("uniform", STEPS, wanted)
    labels = [result.label for result in comparison.results]
    assert labels.index(fewer.label) < labels.index(uniform.label)


def test_matching_counts_the_stages_of_heun():
    workload = tiny(scheduler="karras-heun", num_steps=10)
    fewer, uniform = matched_baselines(workload, Candidate("p", "never"), 9.0)
    assert fewer.num_steps == 5  # 2 * 5 - 1 evaluations
    assert uniform.num_steps == 10
    assert matched_baselines(workload, Candidate("p", "never"), 19.0) == ()


def test_equal_samples_are_infinitely_close(profile):
    found = compare(
        tiny(), [Candidate("zero", "sencache:epsilon=0", profile=profile)], range(3), audited=1, progress=False
    )
    assert [result.label for result in found.results] == ["uncached", "zero"]  # nothing to match: nothing was saved
    zero = found.results[1]
    assert zero.psnr == (math.inf,) * 3
    assert zero.ssim == pytest.approx((1.0,) * 3)
    assert zero.changes == ()
    row = json.loads(found.to_json())["rows"][1]
    assert row["psnr_mean"] == "inf"
    assert row["psnr_std"] is None


def test_a_sample_does_not_depend_on_its_batch(profile):
    candidates = [Candidate("one", SENCACHE, profile=profile)]
    runs = [compare(tiny(), candidates, range(4), batch_size=n, audited=0, progress=False) for n in (1, 4)]
    one, four = (by_label(run)["one"] for run in runs)
    assert one.timeline() == four.timeline()
    # in dB, far from identical pictures, where rounding would decide
    assert one.psnr == pytest.approx(four.psnr, abs=0.01)


def test_scores_leave_out_what_they_do_not_apply_to(comparison):
    centres = tiny_inputs(range(5)).labels["centre"]
    expected = int((centres >= 0.5).sum())
    assert 0 < expected < 5
    assert comparison.rows()[0]["nearness_samples"] == expected
    assert comparison.rows()[0]["nearness"] > 0.8


def test_audited_changes_belong_to_reuses(comparison):
    bold = by_label(comparison)["bold"]
    timeline = bold.timeline()
    assert {(change.seed, change.call) for change in bold.changes} == {
        (seed, call) for seed in range(3) for call, mark in enumerate(timeline[seed]) if mark == "."
    }
    for change in bold.changes:
        assert change.true >= 0
        assert 0 < change.predicted <= 0.2


def test_csv(comparison):
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert [row["label"] for row in rows] == [result.label for result in comparison.results]
    for row, result in zip(rows, comparison.results, strict=True):
        assert float(row["nfe"]) == pytest.approx(result.mean_nfe)
        assert float(row["seconds"]) == pytest.approx(result.wall_time)
        assert row["kind"] == result.kind
    assert rows[0]["psnr_mean"] == ""
    bold = next(row for row in rows if row["label"] == "bold")
    values = by_label(comparison)["bold"].psnr
    assert float(bold["psnr_mean"]) == pytest.approx(sum(values) / 5)
    assert float(bold["psnr_worst"]) == min(values)
    assert "epsilon=0.2" in bold["policy"]


def test_json(comparison):
    read = json.loads(comparison.to_json())
    assert read["seeds"] == [0, 1, 2, 3, 4]
    assert read["settings"]["steps"] == str(STEPS)
    assert read["provenance"]["torch"] == metadata.version("torch")
    for row, result in zip(read["rows"], comparison.results, strict=True):
        assert row["per_sample"]["nfe"] == list(result.nfe)
        assert len(row["per_sample"]["nearness"]) == 5
        assert len(row["seconds_all"]) == (3 if row["kind"] == "uncached" else 2)
        if result.kind == "policy":
            assert [line.count("#") for line in row["timeline"]] == list(result.nfe)
        else:
            assert row["changes"] == []
    assert None in read["rows"][0]["per_sample"]["nearness"]


def test_the_report_is_complete_and_needs_nothing_else(comparison, tmp_path):
    report, table, document = write_all(comparison, tmp_path / "new")
    html = report.read_text()
    assert table.read_text() == comparison.to_csv()
    assert document.read_text() == comparison.to_json()
    cells = re.findall(r'<tr class="([\w-]+)[^>]*>\s*<td>([^<]*)</td>', html)
    assert cells == [(result.kind.replace(" ", "-"), result.label) for result in comparison.results]
    sources = re.findall(r'\b(?:src|href)\s*=\s*"([^"]*)"', html)
    assert all(re.match(r"data:image/png;base64,\s*iVBOR|#", source) for source in sources)
    assert html.count("<svg") == 2 * (1 + 2 + 1)  # for a screen and a telephone: quality, timelines, changes
    assert not re.search(r"https?:|url\((?!data:|#)|<script|<link|@import", html)
    for words in ("seeds", "SenCache(epsilon=0.2", metadata.version("torch"), "flow-euler"):
        assert words in html


def test_text_from_outside_is_escaped(profile):
    found = compare(
        tiny(name="<b>tiny</b>", decode=lambda x: x.clamp(0, 1)[:, 0]),
        [Candidate("<i>x</i>", "uniform:every=3")],
        [0],
        audited=1,
        progress=False,
    )
    html = rendered_report(found)
    assert "<i>x" not in html
    assert "<b>tiny" not in html
    assert "&lt;i&gt;x&lt;/i&gt;" in html
    assert "predicts no change" in html


def test_the_printed_table_has_every_row(comparison):
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as capture:
        console.print(comparison.table())
    for result in comparison.results:
        assert result.label in capture.get()
        assert f"{result.mean_nfe:.1f}" in capture.get()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": []}, "no seeds"),
        ({"candidates": []}, "nothing to compare with"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"repeats": 1.5}, "repeats must be an integer >= 1, got 1.5"),
        ({"audited": -1}, "audited must be an integer >= 0, got -1"),
        ({"candidates": [Candidate("a", "never"), Candidate("a", "never")]}, "label 'a' is used twice"),
        ({"candidates": [Candidate("uncached", "never")]}, "label 'uncached' is used twice"),
        ({"candidates": [Candidate("a", "uniform:every=0")]}, "every must be an integer >= 1, got 0"),
        ({"candidates": [Candidate("a", num_steps=0)]}, "num_steps"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(changed, message):
    def never_called(x, t, centre):
        raise AssertionError("computed")

    options = {"candidates": [Candidate("u", "uniform:every=2")], "seeds": [0], "progress": False} | changed
    with pytest.raises(SettingsError, match=re.escape(message)):
        compare(tiny(denoiser=never_called), **options)


def test_an_unknown_policy_and_a_missing_profile_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'sencache'"):
        compare(tiny(), [Candidate("a", "sencach")], [0], progress=False)
    with pytest.raises(NeedsError, match="profile"):
        compare(tiny(), [Candidate("a", "sencache")], [0], progress=False)


def test_a_missing_package_is_named():
    with pytest.raises(NeedsError, match=r"no_such_package.*\.\[compare\]"):
        _extras.check_installed("torch", "no_such_package")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"num_steps": 0}, SettingsError, "num_steps must be an integer >= 1"),
        ({"name": " "}, SettingsError, "name must be a non-empty string"),
        ({"denoiser": 3}, SettingsError, "denoiser must be callable, got 3"),
        ({"latent_shape": (2, 0)}, SettingsError, "latent_shape must be positive sizes"),
        ({"scores": {"a": 1}}, SettingsError, "scores must be a mapping"),
        ({"scheduler": "flow-eule"}, UnknownNameError, "did you mean 'flow-euler'"),
    ],
)
def test_a_wrong_workload(changed, error, message):
    with pytest.raises(error, match=re.escape(message)):
        tiny(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": lambda seeds: 1}, "inputs(seeds) returned 1, not an Inputs"),
        ({"latent_shape": (3, 12, 12)}, "noise of shape (1, 2, 12, 12), expected (1, 3, 12, 12)"),
        ({"decode": lambda x: x[0, 0]}, "decode returned shape (12, 12) for 1 samples"),
        ({"decode": lambda x: None}, "decode returned None"),
        ({"scores": {"s": lambda x, inputs: x.mean()}}, "score 's' returned shape () for 1 samples"),
    ],
)
def test_a_workload_that_breaks_its_word(changed, message):
    with pytest.raises(InputError, match=re.escape(message)):
        compare(tiny(**changed), [Candidate("u", "uniform:every=2")], [0], audited=0, progress=False)


def test_inputs_need_floating_point_noise():
    with pytest.raises(InputError, match="int64"):
        Inputs(noise=torch.zeros(2, 3, dtype=torch.int64))


def build(name="built"):
    return tiny(name=name)


def build_nothing():
    return {"name": "no workload"}


constant = 3


def test_load_workload():
    assert load_workload(f"{__name__}:build", name="other").name == "other"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("no-colon", {}, "expected 'module:function'"),
        ("a b:c", {}, "expected 'module:function'"),
        ("no_such_module_here:f", {}, "there is no module 'no_such_module_here'"),
        ("cachepolicies.no_such_part:f", {}, "there is no module 'cachepolicies.no_such_part'"),
        (f"{__name__}:biuld", {}, "did you mean 'build'"),
        (f"{__name__}:constant", {}, "'constant' is 3, not a function"),
        (f"{__name__}:build_nothing", {}, "must return a cachepolicies.comparison.Workload"),
        (f"{__name__}:build", {"nam": "x"}, "unknown setting 'nam': did you mean 'name'"),
    ],
)
def test_load_workload_explains(target, options, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        load_workload(target, **options)


@given(shift=st.floats(0.01, 0.3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_psnr_of_a_known_shift(shift, seed):
    pictures = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert psnr(pictures + shift, pictures).tolist() == pytest.approx([-20 * math.log10(shift)] * 2, rel=1e-4)
    values = ssim(pictures + shift, pictures)
    assert values.shape == (2,)
    assert (values < 1).all()


def test_metrics_of_each_sample_are_its_own():
    pictures = torch.rand(3, 2, 12, 12)
    changed = pictures.clone()
    changed[1] = 1 - changed[1]
    assert torch.isinf(psnr(changed, pictures)).tolist() == [True, False, True]
    assert (ssim(changed, pictures) > 0.999).tolist() == [True, False, True]
    assert ssim(pictures[..., :8], pictures[..., :8]).isnan().all()
    with pytest.raises(InputError, match="cannot be compared"):
        psnr(pictures, pictures[:1])


class Linear(nn.Module):
    """Returns ``gain * x + condition``; records the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.sizes = []

    def forward(self, x, t, condition, return_dict=True):
        self.sizes.append(len(x))
        return (self.gain * x + condition[:, None],)


@given(scale=st.floats(-3, 8), rows=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_guidance_extrapolates_in_one_doubled_batch(scale, rows):
    network = Linear()
    denoiser = GuidedDenoiser(network, scale, argument="condition", null=lambda n: torch.zeros(n))
    x, condition = torch.randn(rows, 3), torch.randn(rows)
    assert torch.allclose(denoiser(x, torch.ones(rows), condition), 2 * x + scale * condition[:, None], atol=1e-5)
    assert network.sizes == [2 * rows]
    assert denoiser.model_class_name == "Linear"
    assert list(denoiser.state_dict()) == ["gain"]


def test_guidance_must_be_finite():
    with pytest.raises(SettingsError, match="guidance must be a finite number, got nan"):
        GuidedDenoiser(Linear(), math.nan, argument="condition", null=torch.zeros)


@pytest.mark.parametrize("inputs", [video_inputs, image_inputs])
def test_reference_inputs_belong_to_their_seed(inputs):
    several, alone = inputs([3, 8, 5]), inputs([8])
    assert torch.equal(several.noise[1:2], alone.noise)
    assert torch.equal(several.args[0][1:2], alone.args[0])
    assert torch.equal(several.labels["digit"][1:2], alone.labels["digit"])


def test_video_accuracy_leaves_out_two_digits():
    inputs = video_inputs(range(12))
    several = inputs.labels["digit"] < 0
    assert 0 < several.sum() < 12
    scores = video_accuracy(torch.zeros_like(inputs.noise), inputs)
    assert torch.equal(scores.isnan(), several)


@pytest.mark.parametrize("build_workload", [video_dit, image_dit])
def test_reference_workloads_sample(build_workload):
    class Stand(nn.Module):
        def forward(self, x, t, encoder_hidden_states=None, class_labels=None, return_dict=True):
            assert (encoder_hidden_states is None) != (class_labels is None)
            return (0.1 * x,)

    workload = build_workload(network=Stand(), num_steps=4)
    found = compare(workload, [Candidate("u", "uniform:every=2")], range(3), baselines=False, progress=False)
    assert found.score_names == ("accuracy",)
    assert found.uncached.mean_nfe == 4
    assert found.results[1].mean_nfe == 2
    frames = moving_digits.FRAMES if build_workload is video_dit else 1
    assert found.uncached.pictures.shape[:2] == (3, frames)
    assert "accuracy" in rendered_report(found)


def test_the_audit_keeps_to_the_batch_size():
    rows = []

    def model(x, t, centre):
        rows.append(len(x))
        return pull(x, t, centre)

    compare(tiny(denoiser=model), [Candidate("u", "uniform:every=2")], range(5), batch_size=2, progress=False)
    assert max(rows) == 2


def test_two_policies_of_one_cost_each_have_their_baselines():
    candidates = [Candidate("a", "uniform:every=2"), Candidate("b", "uniform:every=2,evaluations=None")]
    results = compare(tiny(), candidates, range(2), audited=0, progress=False).results
    assert [r.label for r in results if r.matches == "a"] == ["fewer steps (6)", "uniform (6)"]
    assert [r.label for r in results if r.matches == "b"] == ["fewer steps (6), b", "uniform (6), b"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decode": lambda x: x.clamp(0, 1) * 255}, r"decode returned pictures from 0 to 255; PSNR and SSIM expect"),
        ({"decode": lambda x: x * float("nan")}, r"pictures from nan to nan"),
        ({"decode": lambda x: x[:1]}, r"decode returned shape \(1, 2, 12, 12\) for 3 samples"),
        ({"scores": {"s": lambda samples, inputs: samples}}, "score 's' returned shape"),
    ],
)
def test_pictures_and_scores_are_checked_before_anything_is_sampled(changed, message):
    calls = []

    def model(x, t, centre):
        calls.append(1)
        return pull(x, t, centre)

    with pytest.raises(InputError, match=message):
        compare(tiny(denoiser=model, **changed), [Candidate("u", "uniform:every=2")], range(3), progress=False)
    assert not calls

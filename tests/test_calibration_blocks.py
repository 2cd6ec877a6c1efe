"""Calibration at the block stack: ratios and changes by hand, in the same evaluations, whatever the batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cachepolicies import (
    CachedDenoiser,
    CalibrationSamples,
    NeedsError,
    ProfileError,
    calibrate,
    load_profile,
    sample,
    save_profile,
)
from cachepolicies.base.outputs import tensor_of
from cachepolicies.calibration.fit import fit_polynomial
from cachepolicies.schedulers.flow_euler import FlowEuler
from tiny_models import TINY

STEPS, SAMPLES = 7, 3
TINY_WAN = TINY["WanTransformer3DModel"]
pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")


class Wrapper:
    """Calls the network as often as it is told, with the captions at hand."""

    model_class_name = "WanTransformer3DModel"

    def __init__(self, passes=lambda t: 1):
        self.network = TINY_WAN.build()
        self.passes = passes

    def __call__(self, x: Tensor, t: Tensor, captions: Tensor) -> Tensor:
        outputs = [
            tensor_of(self.network(hidden_states=x, timestep=t, encoder_hidden_states=captions * (k + 1.0)))
            for k in range(self.passes(float(t[0])))
        ]
        return sum(outputs[1:], outputs[0]) / len(outputs)


def samples() -> CalibrationSamples:
    inputs = TINY_WAN.inputs(SAMPLES)
    return CalibrationSamples(
        noise=inputs["hidden_states"], args=(inputs["encoder_hidden_states"],), seeds=tuple(range(SAMPLES))
    )


@pytest.fixture(scope="module")
def profile():
    return calibrate(Wrapper(), FlowEuler(), samples(), num_steps=STEPS, progress=False)


def by_hand() -> dict[str, np.ndarray]:
    """The trajectory once more, with torch's hooks: residual norms, what block 0's attention gets, and outputs."""
    wrapper, drawn, scheduler = Wrapper(), samples(), FlowEuler()
    network: Any = wrapper.network
    seen: dict[str, list[Tensor]] = {"in": [], "out": [], "modulated": [], "embedding": [], "y": []}
    network.blocks[0].register_forward_pre_hook(lambda m, args: seen["in"].append(args[0].clone()))
    network.blocks[-1].register_forward_hook(lambda m, args, out: seen["out"].append(out.clone()))
    network.blocks[0].attn1.register_forward_pre_hook(lambda m, args: seen["modulated"].append(args[0].clone()))
    network.condition_embedder.time_embedder.register_forward_hook(
        lambda m, args, out: seen["embedding"].append(out.clone())
    )

    def denoiser(x, t, captions):
        seen["y"].append(wrapper(x, t, captions))
        return seen["y"][-1]

    with torch.no_grad():
        sample(denoiser, scheduler, drawn.noise, *drawn.args, num_steps=STEPS)
    norms = [(b - a).norm(dim=-1) for a, b in zip(seen["in"], seen["out"], strict=True)]
    pairs = list(zip(norms[1:], norms[:-1], strict=True))

    def changes(name: str) -> np.ndarray:
        values = [v.reshape(SAMPLES, -1).double() for v in seen[name]]
        return np.stack([((b - a).abs().mean(1) / a.abs().mean(1)).numpy() for a, b in pairwise(values)])

    return {
        "magnitude_ratio": np.stack([np.ones(SAMPLES), *((now / before).mean(1).numpy() for now, before in pairs)]),
        "signal_change.modulated_input": changes("modulated"),
        "signal_change.timestep_embedding": changes("embedding"),
        "output_change": changes("y"),
    }


def test_ratios_and_changes_are_those_of_the_trajectory(profile):
    for name, expected in by_hand().items():
        np.testing.assert_allclose(profile.tables[name], expected, rtol=2e-4, atol=1e-7, err_msg=name)


def test_the_polynomial_is_the_fit_to_the_tables_with_its_r_squared(profile):
    for signal in ("modulated_input", "timestep_embedding", "timestep_projection"):
        fitted = fit_polynomial(profile.tables[f"signal_change.{signal}"], profile.tables["output_change"])
        assert profile.polynomials[signal] == fitted
        assert fitted.r_squared is not None
        assert fitted.r_squared <= 1


def test_it_takes_no_further_evaluation(profile):
    without = calibrate(Wrapper(), FlowEuler(), samples(), num_steps=STEPS, progress=False, blocks=False)
    assert profile.evaluations == without.evaluations
    assert not without.polynomials
    # beside the distances, what thresholds are solved on: magnitudes, and the filtered latent
    distances = {"displacement", "change", "displacement_l1", "change_l1", "output_l1"}
    assert set(without.tables) - {"filtered_change"} == distances
    for name in ("alpha_x", "alpha_t"):
        np.testing.assert_array_equal(profile.curves[name].values, without.curves[name].values)


def test_neither_batches_nor_an_interruption_change_it(profile, tmp_path):
    single = calibrate(
        Wrapper(), FlowEuler(), samples(), num_steps=STEPS, progress=False, batch_size=1, checkpoint=tmp_path / "half"
    )
    resumed = calibrate(
        Wrapper(), FlowEuler(), samples(), num_steps=STEPS, progress=False, batch_size=1, checkpoint=tmp_path / "half"
    )
    for name, table in profile.tables.items():
        np.testing.assert_allclose(single.tables[name], table, rtol=1e-3, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(resumed.tables[name], single.tables[name])
    assert resumed.polynomials == single.polynomials


def test_it_survives_the_file_and_feeds_the_policies(profile, tmp_path):
    saved = load_profile(save_profile(profile, tmp_path / "tiny.json"))
    assert saved == profile
    drawn = samples()
    for policy in ("teacache:threshold=0.5,signal=modulated_input", "magcache:threshold=0.5,retention_ratio=0.3"):
        denoiser = CachedDenoiser(Wrapper(), policy, profile=saved, site="blocks")
        with torch.no_grad():
            sample(denoiser, FlowEuler(), drawn.noise, *drawn.args, num_steps=20)
        assert 0 < denoiser.cache_ratio < 1


def test_a_network_that_is_called_several_times_is_averaged_over_its_calls():
    twice = calibrate(Wrapper(lambda t: 2), FlowEuler(), samples(), num_steps=4, progress=False)
    assert twice.tables["magnitude_ratio"].shape == (4, SAMPLES)
    with pytest.raises(ProfileError, match=r"called 1 times by the denoiser at t=.* and 2 times before"):
        calibrate(Wrapper(lambda t: 2 if t > 600 else 1), FlowEuler(), samples(), num_steps=4, progress=False)


def test_too_few_points_are_noted_not_fitted():
    short = calibrate(Wrapper(), FlowEuler(), samples(), num_steps=2, progress=False)
    assert "timestep_embedding" not in short.polynomials
    assert "no polynomial for timestep_embedding: 1 different changes, 5 are needed" in short.notes


def test_blocks_that_are_wanted_and_not_there_are_an_error():
    def denoiser(x, t, captions):
        return x

    with pytest.raises(NeedsError, match=r"blocks=True, but function is no torch\.nn\.Module"):
        calibrate(denoiser, FlowEuler(), samples(), num_steps=4, progress=False, blocks=True)


def test_a_blocks_calibration_does_not_take_over_the_checkpoint_of_one_without(tmp_path):
    for blocks in (False, None):
        arguments = {"num_steps": 3, "progress": False, "checkpoint": tmp_path / "part", "blocks": blocks}
        if blocks is False:
            calibrate(Wrapper(), FlowEuler(), samples(), **arguments)
        else:
            with pytest.raises(ProfileError, match="other settings"):
                calibrate(Wrapper(), FlowEuler(), samples(), **arguments)

"""The reference models that draw photographs and play melodies, and the twins: data, weights, samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cachepolicies import load_profile, sample
from cachepolicies.reference import (
    image_dit,
    melodies,
    photo_unet,
    photographs,
    sound_transformer,
    video_dit,
    workloads,
)

pytest.importorskip("sklearn")

MODELS = {
    "video-dit": video_dit,
    "image-dit": image_dit,
    "photo-unet": photo_unet,
    "sound-transformer": sound_transformer,
}
NAMES = [name for model in MODELS for name in (model, f"{model}-twin")]
LARGEST = 5 * 2**20
PROFILES = Path(__file__).parents[1] / "profiles"


def workload(name):
    return getattr(workloads, name.replace("-", "_"))()


def weights(name):
    module = MODELS[name.removesuffix("-twin")]
    return module.TWIN_WEIGHTS if name.endswith("-twin") else module.WEIGHTS


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_say_where_they_come_from(name):
    path = weights(name)
    assert path.stat().st_size <= LARGEST
    provenance = json.loads(path.with_suffix(".json").read_text())
    assert {"model", "data", "objective", "script", "settings", "versions"} <= provenance.keys()
    assert provenance["settings"]["seed"] == int(name.endswith("-twin"))
    losses = [float(line.split(",")[1]) for line in path.with_suffix(".loss.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("model", MODELS)
def test_a_twin_is_the_same_network_with_other_weights(model):
    one, other = (dict(workload(name).denoiser.state_dict()) for name in (model, f"{model}-twin"))
    assert one.keys() == other.keys()
    assert all(one[key].shape == other[key].shape for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_the_profile_is_of_these_weights(name):
    from cachepolicies.base.models import weights_hash

    profile = load_profile(PROFILES / f"{name}.json")
    assert profile.name == name or profile.samples == 8
    assert profile.model.weights_hash == weights_hash(workload(name).denoiser)
    assert profile.num_steps == 50


@torch.no_grad()
@pytest.mark.parametrize("name", ["sound-transformer", "sound-transformer-twin"])
def test_melodies_are_heard_as_asked_for(name):
    made = workload(name)
    inputs = made.draw(range(8))
    latents = sample(made.denoiser, made.scheduler, inputs.noise, *inputs.args, num_steps=20)
    assert made.scores["pitch"](latents, inputs).mean() > 0.8
    pictures = made.pictures(latents)
    assert pictures.shape == (8, 1, 32, 64)


@torch.no_grad()
@pytest.mark.parametrize("name", ["photo-unet", "photo-unet-twin"])
def test_crops_are_coloured_as_the_photographs(name):
    made = workload(name)
    inputs = made.draw(range(16))
    latents = sample(made.denoiser, made.scheduler, inputs.noise, num_steps=20)
    real = photographs.draw_crops(256, torch.Generator().manual_seed(0))
    assert latents.std().item() == pytest.approx(real.std().item(), rel=0.35)
    assert made.pictures(latents).shape == (16, 1, photographs.SIDE, photographs.SIDE)


def test_a_melody_is_its_notes():
    """What is plucked is heard again, but for a soft note under a loud one; latents are of unit size."""
    generator = torch.Generator().manual_seed(0)
    drawn = melodies.draw_melodies(512, generator)
    waves = melodies.play(drawn, generator)
    assert (melodies.heard(waves) == drawn.pitch).double().mean() > 0.98
    latents = melodies.encode(waves)
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(melodies.decode(latents), waves.clamp(-1, 1))


def test_photographs_are_split_by_width():
    train, held_out = photographs.load_photographs("train"), photographs.load_photographs("held-out")
    assert [image.shape[-1] for image in train] == [256, 256]
    assert [image.shape[-1] for image in held_out] == [64, 64]
    crops = photographs.draw_crops(8, torch.Generator().manual_seed(0), "held-out")
    assert crops.shape == (8, 3, 24, 24)
    torch.testing.assert_close(photographs.pixels(crops).min(), photographs.pixels(crops).clamp(0, 1).min())
    with pytest.raises(ValueError, match="use 'train' or 'held-out'"):
        photographs.load_photographs("test")


@torch.no_grad()
def test_the_preconditioning_keeps_the_data_at_low_noise_and_forgets_it_at_high():
    """At sigma -> 0 the denoiser returns its input; at a large sigma it hardly depends on it (EDM, table 1)."""
    model = photo_unet.load_photo_unet()
    data = photographs.draw_crops(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(data, torch.tensor(1e-3)), data, atol=5e-3, rtol=0)
    far = model(80.0 * torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(1)), torch.tensor(80.0))
    assert far.std().item() < 1.0

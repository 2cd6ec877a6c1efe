"""The data of the trained reference models, and the classifier that judges their samples."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.reference import moving_digits
from cachepolicies.reference.classifier import WEIGHTS, classify, classify_digit_images, load_classifier
from cachepolicies.reference.digits import Digits, load_digits
from cachepolicies.reference.moving_digits import CANVAS, DIGIT, FRAMES, NO_DIGIT, SPEEDS, Captions

pytest.importorskip("sklearn")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def captions(speed: int, n: int = 16, second: int = NO_DIGIT) -> Captions:
    return Captions(torch.arange(n) % 10, torch.full((n,), second), torch.full((n,), speed))


def solid_digits() -> Digits:
    """White squares in place of handwriting: their mass and centre say exactly where a digit is."""
    return Digits(torch.ones(10, DIGIT, DIGIT), torch.arange(10))


def centres(videos: Tensor) -> Tensor:
    """Centre of mass of every frame, ``(n, f, 2)`` in pixels."""
    pixel = torch.arange(CANVAS, dtype=torch.float32)
    mass = videos.sum(dim=(2, 3))
    rows = (videos.sum(dim=3) * pixel).sum(dim=2) / mass
    columns = (videos.sum(dim=2) * pixel).sum(dim=2) / mass
    return torch.stack([rows, columns], dim=-1)


def test_splits_are_disjoint_and_complete() -> None:
    train, held_out = load_digits("train"), load_digits("held-out")
    assert len(train.labels) + len(held_out.labels) == 1797
    assert len(held_out.labels) == round(0.2 * 1797)
    # the originals are unique, so equal images would mean a shared one
    rows = {tuple(image.flatten().tolist()) for image in train.images}
    assert rows.isdisjoint(tuple(image.flatten().tolist()) for image in held_out.images)
    for split in (train, held_out):
        assert set(split.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("size", [8, 12, 16])
def test_digits_have_the_size_asked_for(size: int) -> None:
    digits = load_digits("held-out", size=size)
    assert digits.images.shape == (359, size, size)
    assert digits.images.dtype == torch.float32
    assert 0.0 <= digits.images.min() < digits.images.max() <= 1.0
    assert torch.equal(digits.labels, load_digits("held-out").labels)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split is 'test'; use 'train' or 'held-out'"):
        load_digits("test")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 6))
def test_decode_inverts_encode(seed: int, n: int) -> None:
    videos = torch.rand(n, FRAMES, CANVAS, CANVAS, generator=generator(seed))
    latents = moving_digits.encode(videos)
    assert latents.shape == (n, *moving_digits.LATENT_SHAPE)
    torch.testing.assert_close(moving_digits.decode(latents), videos, rtol=0, atol=1e-6)


def test_decode_clips_and_encode_folds_blocks_into_channels() -> None:
    video = torch.zeros(1, FRAMES, CANVAS, CANVAS)
    video[0, 3, 5, 8] = 1.0  # odd row, even column: third of the four channels
    latents = moving_digits.encode(video)
    brightest = torch.unravel_index(latents.argmax(), latents.shape)
    assert [int(i) for i in brightest] == [0, 2, 3, 2, 4]
    assert moving_digits.decode(100.0 * latents).max() == 1.0
    assert moving_digits.decode(-100.0 * latents).min() == 0.0


def test_latents_are_standardised() -> None:
    drawn = moving_digits.draw_captions(256, generator(0))
    latents = moving_digits.encode(moving_digits.render(drawn, load_digits("train"), generator(1)))
    assert abs(latents.mean().item()) < 0.2
    assert 0.8 < latents.std().item() < 1.2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), speed=st.integers(0, len(SPEEDS) - 1))
def test_digits_stay_on_the_canvas(seed: int, speed: int) -> None:
    videos = moving_digits.render(captions(speed), solid_digits(), generator(seed))
    assert videos.shape == (16, FRAMES, CANVAS, CANVAS)
    assert videos.min() >= 0.0
    assert videos.max() <= 1.0 + 1e-6
    # bilinear placement keeps the mass of what lies on the canvas, so a digit over an edge would lack some
    mass = videos.sum(dim=(2, 3))
    torch.testing.assert_close(mass, torch.full_like(mass, DIGIT**2), rtol=0, atol=0.05)


def test_still_videos_are_still_and_others_are_not() -> None:
    digits = load_digits("train")
    still = moving_digits.render(captions(0), digits, generator(3))
    torch.testing.assert_close(still, still[:, :1].expand_as(still), rtol=0, atol=1e-6)
    for speed in range(1, len(SPEEDS)):
        moving = moving_digits.render(captions(speed), digits, generator(3))
        assert (moving[:, 1:] - moving[:, :-1]).abs().amax(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("speed", range(len(SPEEDS)))
def test_speeds_are_as_stated(speed: int) -> None:
    videos = moving_digits.render(captions(speed, n=64), solid_digits(), generator(4))
    paths = centres(videos)
    moved = paths.diff(dim=1).norm(dim=-1)
    assert (moved <= SPEEDS[speed] + 0.3).all()
    # a bounce shortens the way; it cannot lie between two frames that are both more than half a step from the edges
    margin = 0.5 * SPEEDS[speed] + 0.1
    first, last = (DIGIT - 1) / 2, CANVAS - (DIGIT + 1) / 2
    inside = ((paths > first + margin) & (paths < last - margin)).all(dim=-1)
    free = inside[:, 1:] & inside[:, :-1]
    assert free.sum() > 40
    torch.testing.assert_close(moved[free], torch.full_like(moved[free], SPEEDS[speed]), rtol=0, atol=0.02)


def test_second_digit_is_drawn_only_when_asked_for() -> None:
    one = moving_digits.render(captions(1, second=NO_DIGIT), solid_digits(), generator(5))
    two = moving_digits.render(captions(1, second=4), solid_digits(), generator(5))
    assert (two >= one).all()
    assert (two.sum(dim=(1, 2, 3)) > one.sum(dim=(1, 2, 3))).all()


def test_everything_is_determined_by_the_seed() -> None:
    def video(seed: int) -> Tensor:
        g = generator(seed)
        return moving_digits.render(moving_digits.draw_captions(8, g), load_digits("train"), g)

    assert torch.equal(video(0), video(0))
    assert not torch.equal(video(0), video(1))


def test_captions_follow_the_mixture_and_embed_one_hot() -> None:
    drawn = moving_digits.draw_captions(4000, generator(6))
    assert abs((drawn.second == NO_DIGIT).float().mean() - moving_digits.SINGLE_DIGIT_SHARE) < 0.03
    assert (moving_digits.draw_captions(50, generator(6), single=True).second == NO_DIGIT).all()
    assert (moving_digits.draw_captions(50, generator(6), single=False).second != NO_DIGIT).all()
    assert set(drawn.speed.tolist()) == set(range(len(SPEEDS)))
    embedding = drawn.embed()
    assert embedding.shape == (4000, moving_digits.TEXT_TOKENS, moving_digits.TEXT_DIM)
    assert torch.equal(embedding.sum(dim=2), torch.ones(4000, 3))
    assert torch.equal(embedding[:, 0].argmax(dim=1), drawn.first)
    assert torch.equal(embedding[:, 1].argmax(dim=1) - 10, drawn.second)
    assert torch.equal(embedding[:, 2].argmax(dim=1) - 21, drawn.speed)
    assert moving_digits.null_embedding(2).count_nonzero() == 0
    assert moving_digits.null_embedding(2).shape == embedding[:2].shape


def test_classifier_recognises_held_out_digits_anywhere() -> None:
    g = generator(7)
    drawn = moving_digits.draw_captions(600, g, single=True)
    videos = moving_digits.render(drawn, load_digits("held-out"), g)
    accuracy = (classify(videos[:, FRAMES // 2]) == drawn.first).float().mean().item()
    assert accuracy >= 0.95
    provenance = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert abs(accuracy - provenance["accuracy"]["held-out"]) < 0.03


def test_classifier_recognises_held_out_images() -> None:
    digits = load_digits("held-out", size=16)
    labels = classify_digit_images(digits.images)
    assert (labels == digits.labels).float().mean() >= 0.95
    assert torch.equal(classify_digit_images(digits.images[:, None]), labels)


def test_classifier_is_small_and_ready() -> None:
    model = load_classifier()
    assert sum(p.numel() for p in model.parameters()) <= 60_000
    assert not model.training
    assert classify(torch.zeros(0, CANVAS, CANVAS)).shape == (0,)
    frames = torch.rand(3, CANVAS, CANVAS, generator=generator(8))
    assert torch.equal(classify(frames)[1:2], classify(frames[1:2]))


def test_classifier_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match=r"frames have shape \(2, 8, 24, 24\)"):
        classify(torch.zeros(2, 8, 24, 24))
    with pytest.raises(InputError, match=r"torch\.uint8"):
        classify(torch.zeros(2, 24, 24, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"images have shape \(2, 3, 16, 16\)"):
        classify_digit_images(torch.zeros(2, 3, 16, 16))

"""Synthetic sound: melodies of four plucked notes, what the one-dimensional transformer plays."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

RATE = 4096
"""Samples a second."""

LENGTH = 2048
"""Samples of a melody: half a second."""

NOTES = 4
PITCHES = tuple(196.0 * 2.0 ** (semitones / 12) for semitones in (0, 2, 4, 7, 9, 12, 14, 16))
"""Fundamental frequencies in hertz: a pentatonic scale on G3."""

OVERTONES = 4
"""The fundamental and its multiples; the highest is below half of `RATE`."""

WAVE_STD = 0.27
"""Standard deviation of the waves, which latents are divided by."""


@frozen
class Melodies:
    """What a batch of melodies is made of.

    Attributes:
        pitch: ``(B, 4)`` int64, the index in `PITCHES` of every note.
    """

    pitch: Tensor


def draw_melodies(n: int, generator: torch.Generator) -> Melodies:
    """Draw the notes of n melodies, all equally likely."""
    return Melodies(torch.randint(len(PITCHES), (n, NOTES), generator=generator))


def play(melodies: Melodies, generator: torch.Generator) -> Tensor:
    """Pluck the notes one after the other; what the notes leave open is drawn.

    A note is a sum of overtones with amplitudes ``brightness ** k / k`` and phases of their own, after a short attack
    it decays exponentially, higher overtones faster, and rings on into the next note. Loudness, brightness and decay
    are drawn for each note.

    Args:
        melodies: the notes.
        generator: source of all that is drawn.

    Returns:
        ``(B, 2048)`` float32 waves, most of them within [-1, 1].
    """
    rows = melodies.pitch.shape[0]
    time = torch.arange(LENGTH) / RATE
    frequency = torch.tensor(PITCHES)[melodies.pitch]
    shape = (rows, NOTES)
    loudness = 0.4 + 0.4 * torch.rand(shape, generator=generator)
    brightness = 0.4 + 0.5 * torch.rand(shape, generator=generator)
    decay = 6.0 + 8.0 * torch.rand(shape, generator=generator)
    onset = torch.arange(NOTES) * (LENGTH / RATE / NOTES)
    since = (time[None, :] - onset[:, None]).clamp(min=0.0)
    attack = -torch.expm1(-since / 0.004)
    wave = torch.zeros(rows, LENGTH)
    for overtone in range(1, OVERTONES + 1):
        phase = 2 * math.pi * torch.rand(shape, generator=generator)
        amplitude = loudness * brightness ** (overtone - 1) / overtone
        fading = torch.exp(-decay[..., None] * math.sqrt(overtone) * since)
        tone = torch.sin(2 * math.pi * overtone * frequency[..., None] * since + phase[..., None])
        wave += (amplitude[..., None] * attack * fading * tone).sum(1)
    return wave


def heard(waves: Tensor) -> Tensor:
    """Tell the pitch of every note: the fundamental with the most energy in the note's quarter of the wave.

    Args:
        waves: ``(B, 2048)``.

    Returns:
        ``(B, 4)`` int64, the index in `PITCHES`.
    """
    length = LENGTH // NOTES
    quarters = waves.reshape(waves.shape[0], NOTES, length).double()
    time = torch.arange(length, dtype=torch.float64) / RATE
    window = torch.hann_window(length, periodic=False, dtype=torch.float64)
    probe = torch.exp(-2j * math.pi * torch.tensor(PITCHES, dtype=torch.float64)[:, None] * time) * window
    return torch.einsum("bnl,pl->bnp", quarters.to(probe.dtype), probe).abs().argmax(-1)


def encode(waves: Tensor) -> Tensor:
    """Turn waves ``(B, 2048)`` into latents ``(B, 1, 2048)`` of standard deviation near 1."""
    return waves[:, None] / WAVE_STD


def decode(latents: Tensor) -> Tensor:
    """Turn latents ``(B, 1, 2048)`` into waves ``(B, 2048)``, clipped to [-1, 1]."""
    return (latents[:, 0] * WAVE_STD).clamp(-1.0, 1.0)


def wave_picture(latents: Tensor) -> Tensor:
    """Draw waves as grey pictures, silence in the middle: ``(B, 1, 2048)`` to ``(B, 32, 64)`` in [0, 1]."""
    return (0.5 + 0.5 * decode(latents)).reshape(latents.shape[0], -1, 64)

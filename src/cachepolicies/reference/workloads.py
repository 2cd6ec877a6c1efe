"""The trained reference models as workloads: ``cachepolicies compare cachepolicies.reference.workloads:video_dit``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor, nn

from cachepolicies.comparison.workload import Inputs, Workload
from cachepolicies.reference import classifier, melodies, moving_digits, photographs
from cachepolicies.reference import image_dit as image
from cachepolicies.reference import photo_unet as unet
from cachepolicies.reference import sound_transformer as sound
from cachepolicies.reference import video_dit as video
from cachepolicies.reference.digits import load_digits
from cachepolicies.reference.guided import GuidedDenoiser
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.karras_euler import KarrasEuler

GUIDANCE = 2.0
STEPS = 50


def video_dit(
    guidance: float = GUIDANCE, num_steps: int = STEPS, shift: float = 1.0, network: nn.Module | None = None
) -> Workload:
    """Guided videos of moving digits from the trained video DiT, by flow-matching Euler.

    Captions are drawn from the training distribution: one digit or two, from still to fast. ``accuracy`` is the
    fraction of the single-digit videos whose middle frame a classifier takes for the digit in the caption.

    Args:
        guidance: scale of classifier-free guidance; 1 is none.
        num_steps: Euler steps.
        shift: of the noise levels.
        network: instead of the trained one.

    Raises:
        FileNotFoundError: the trained weights are not beside the module.
    """
    return Workload(
        name="video-dit",
        denoiser=GuidedDenoiser(
            video.load_video_dit() if network is None else network,
            guidance,
            argument="encoder_hidden_states",
            null=moving_digits.null_embedding,
        ),
        scheduler=FlowEuler(shift=shift),
        num_steps=num_steps,
        latent_shape=moving_digits.LATENT_SHAPE,
        inputs=video_inputs,
        decode=moving_digits.decode,
        scores={"accuracy": video_accuracy},
        guidance=guidance,
    )


def image_dit(guidance: float = GUIDANCE, num_steps: int = STEPS, network: nn.Module | None = None) -> Workload:
    """Guided digits from the trained image DiT, by DDIM on its variance-preserving noise schedule.

    ``accuracy`` is the fraction of the images that a classifier takes for the digit asked for.

    Args:
        guidance: scale of classifier-free guidance; 1 is none.
        num_steps: DDIM steps.
        network: instead of the trained one.

    Raises:
        FileNotFoundError: the trained weights are not beside the module.
    """
    return Workload(
        name="image-dit",
        denoiser=GuidedDenoiser(
            image.load_image_dit() if network is None else network,
            guidance,
            argument="class_labels",
            null=lambda n: torch.full((n,), image.NULL_LABEL),
        ),
        scheduler=DDIM(prediction_type="noise", **image.SCHEDULE),
        num_steps=num_steps,
        latent_shape=image.LATENT_SHAPE,
        inputs=image_inputs,
        decode=image_pixels,
        scores={"accuracy": image_accuracy},
        guidance=guidance,
    )


def photo_unet(num_steps: int = STEPS, network: nn.Module | None = None) -> Workload:
    """Unguided crops of photographs from the trained U-Net, by Euler on Karras' noise levels, 80 to 0.002.

    Args:
        num_steps: Euler steps.
        network: instead of the trained one.

    Raises:
        FileNotFoundError: the trained weights are not beside the module.
    """
    return Workload(
        name="photo-unet",
        denoiser=unet.load_photo_unet() if network is None else network,
        scheduler=KarrasEuler(),
        num_steps=num_steps,
        latent_shape=unet.LATENT_SHAPE,
        inputs=photo_inputs,
        decode=photographs.luminance,
    )


def sound_transformer(num_steps: int = STEPS, network: nn.Module | None = None) -> Workload:
    """Melodies from the trained one-dimensional transformer, by flow-matching Euler, without guidance.

    A picture of a melody is its wave, 64 samples a row. ``pitch`` is the fraction of the notes that are heard as the
    ones asked for.

    Args:
        num_steps: Euler steps.
        network: instead of the trained one.

    Raises:
        FileNotFoundError: the trained weights are not beside the module.
    """
    return Workload(
        name="sound-transformer",
        denoiser=sound.load_sound_transformer() if network is None else network,
        scheduler=FlowEuler(),
        num_steps=num_steps,
        latent_shape=sound.LATENT_SHAPE,
        inputs=sound_inputs,
        decode=melodies.wave_picture,
        scores={"pitch": pitch_accuracy},
    )


def video_dit_twin() -> Workload:
    """Return `video_dit` with the weights of its twin."""
    return attrs.evolve(video_dit(network=video.load_video_dit(video.TWIN_WEIGHTS)), name="video-dit-twin")


def image_dit_twin() -> Workload:
    """Return `image_dit` with the weights of its twin."""
    return attrs.evolve(image_dit(network=image.load_image_dit(image.TWIN_WEIGHTS)), name="image-dit-twin")


def photo_unet_twin() -> Workload:
    """Return `photo_unet` with the weights of its twin."""
    return attrs.evolve(photo_unet(network=unet.load_photo_unet(unet.TWIN_WEIGHTS)), name="photo-unet-twin")


def sound_transformer_twin() -> Workload:
    """Return `sound_transformer` with the weights of its twin."""
    network = sound.load_sound_transformer(sound.TWIN_WEIGHTS)
    return attrs.evolve(sound_transformer(network=network), name="sound-transformer-twin")


def video_inputs(seeds: Sequence[int]) -> Inputs:
    """Draw a caption and noise for every seed; ``labels["digit"]`` is -1 for a video of two digits."""
    captions, noise, videos = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        captions.append(moving_digits.draw_captions(1, generator))
        noise.append(torch.randn(moving_digits.LATENT_SHAPE, generator=generator))
        videos.append(moving_digits.render(captions[-1], load_digits("held-out"), generator))
    first = torch.cat([caption.first for caption in captions])
    second = torch.cat([caption.second for caption in captions])
    return Inputs(
        noise=torch.stack(noise),
        args=(torch.cat([caption.embed() for caption in captions]),),
        labels={"digit": torch.where(second == moving_digits.NO_DIGIT, first, -1)},
        data=moving_digits.encode(torch.cat(videos)),
    )


def video_accuracy(samples: Tensor, inputs: Inputs) -> Tensor:
    """Return 1 where the middle frame shows the digit asked for, else 0; ``nan`` for videos of two digits. ``(B,)``."""
    middle = moving_digits.decode(samples)[:, moving_digits.FRAMES // 2]
    digit = inputs.labels["digit"]
    right = (classifier.classify(middle) == digit).double()
    return torch.where(digit >= 0, right, math.nan)


def image_inputs(seeds: Sequence[int]) -> Inputs:
    """Draw a class label and noise for every seed."""
    held_out = load_digits("held-out", size=image.LATENT_SHAPE[-1])
    labels, noise, images = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        labels.append(torch.randint(10, (1,), generator=generator))
        noise.append(torch.randn(image.LATENT_SHAPE, generator=generator))
        matching = (held_out.labels == labels[-1]).nonzero()[:, 0]
        images.append(held_out.images[matching[torch.randint(len(matching), (1,), generator=generator)]])
    digit = torch.cat(labels)
    data = (torch.stack(images) - image.PIXEL_MEAN) / image.PIXEL_STD
    return Inputs(noise=torch.stack(noise), args=(digit,), labels={"digit": digit}, data=data)


def image_pixels(latents: Tensor) -> Tensor:
    """Undo the standardisation and clip to [0, 1]: ``(B, 1, 16, 16)`` to ``(B, 16, 16)``."""
    return (latents[:, 0] * image.PIXEL_STD + image.PIXEL_MEAN).clamp(0.0, 1.0)


def image_accuracy(samples: Tensor, inputs: Inputs) -> Tensor:
    """Return 1 where the image shows the digit asked for, else 0. ``(B,)``."""
    return (classifier.classify_digit_images(image_pixels(samples)) == inputs.labels["digit"]).double()


def photo_inputs(seeds: Sequence[int]) -> Inputs:
    """Draw noise for every seed, and a held-out crop as data."""
    noise, crops = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise.append(torch.randn(unet.LATENT_SHAPE, generator=generator))
        crops.append(photographs.draw_crops(1, generator, "held-out"))
    return Inputs(noise=torch.stack(noise), data=torch.cat(crops))


def sound_inputs(seeds: Sequence[int]) -> Inputs:
    """Draw a melody's notes and noise for every seed."""
    pitches, noise, waves = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn = melodies.draw_melodies(1, generator)
        pitches.append(drawn.pitch)
        noise.append(torch.randn(sound.LATENT_SHAPE, generator=generator))
        waves.append(melodies.play(drawn, generator))
    pitch = torch.cat(pitches)
    data = melodies.encode(torch.cat(waves))
    return Inputs(noise=torch.stack(noise), args=(pitch,), labels={"pitch": pitch}, data=data)


def pitch_accuracy(samples: Tensor, inputs: Inputs) -> Tensor:
    """Return the fraction of the notes that are heard as the ones asked for. ``(B,)``."""
    return (melodies.heard(melodies.decode(samples)) == inputs.labels["pitch"]).double().mean(1)

"""Samples as the report shows them: videos as sheets of frames that the page plays, pictures as rows."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from cachepolicies.comparison.results import Comparison, Result

GAIN = 5.0
"""The difference to the uncached samples is shown so many times as large."""
MOST_FRAMES = 24
MOST_PICTURES = 8
WIDEST = 160
"""Pixels of a frame; a wider one is made smaller."""
VIDEOS = 3
"""Samples of which the video is shown."""
_HEAT = ((0.0, 0, 0, 0), (0.4, 200, 60, 20), (0.75, 255, 160, 40), (1.0, 255, 255, 230))
"""Part of the scale, red, green and blue of a difference."""


@frozen
class Sheet:
    """Frames, or pictures, side by side in one PNG.

    Attributes:
        name: unique in the report.
        data: base64 of the PNG.
        count: of frames.
        width: of one, pixels.
        height: of one.
    """

    name: str
    data: str
    count: int
    width: int
    height: int


@frozen
class Showing:
    """One way of sampling beside the uncached samples.

    Attributes:
        label: of the result.
        kind: its kind, as a CSS class.
        distance: to the uncached ones, as text; empty for those.
        cached: what it made.
        difference: to the uncached ones; ``None`` for those.
    """

    label: str
    kind: str
    distance: str
    cached: Sheet
    difference: Sheet | None


@frozen
class Film:
    """The same video from every way of sampling, the uncached one first."""

    seed: int
    showings: tuple[Showing, ...]


def is_video(comparison: Comparison) -> bool:
    """Whether the samples have more than one frame."""
    return bool(comparison.uncached.pictures.shape[1] > 1)


def films(comparison: Comparison) -> list[Film]:
    """Return the first videos of the comparison."""
    frames = _evenly(comparison.uncached.pictures.shape[1], MOST_FRAMES)
    return [
        Film(
            seed,
            _showings(
                comparison,
                f"v{number}",
                [_array(result)[number][frames] for result in comparison.results],
                [_decibels(result.psnr[number]) for result in comparison.results],
            ),
        )
        for number, seed in enumerate(comparison.shown[:VIDEOS])
    ]


def rows_of_pictures(comparison: Comparison) -> tuple[Showing, ...]:
    """Return the first samples, one picture each, as a row for every way of sampling."""
    count = min(len(comparison.shown), MOST_PICTURES)
    return _showings(
        comparison,
        "p",
        [_array(result)[:count, 0] for result in comparison.results],
        [_decibels(statistics.fmean(result.psnr[:count])) for result in comparison.results],
    )


def _showings(
    comparison: Comparison, name: str, pictures: Sequence[NDArray[Any]], distances: Sequence[str]
) -> tuple[Showing, ...]:
    reference = pictures[0]
    return tuple(
        Showing(
            label=result.label,
            kind=result.kind.replace(" ", "-"),
            distance=distance if number else "",
            cached=_sheet(f"{name}c{number}", own),
            difference=_sheet(f"{name}d{number}", np.abs(own - reference) * GAIN, _heat()) if number else None,
        )
        for number, (result, own, distance) in enumerate(zip(comparison.results, pictures, distances, strict=True))
    )


def _array(result: Result) -> NDArray[Any]:
    array: NDArray[Any] = result.pictures.numpy()
    return array


def _sheet(name: str, pictures: NDArray[Any], palette: Sequence[int] | None = None) -> Sheet:
    """Put ``(n, H, W)`` of [0, 1] side by side, grey or in the colours of a palette."""
    from PIL import Image

    levels = np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
    images = [Image.fromarray(each) for each in levels]
    width, height = images[0].size
    if width > WIDEST:
        width, height = WIDEST, max(1, round(height * WIDEST / width))
        images = [each.resize((width, height), Image.Resampling.BOX) for each in images]
    sheet = Image.new("L", (width * len(images), height))
    for number, each in enumerate(images):
        sheet.paste(each, (number * width, 0))
    if palette is not None:
        sheet.putpalette(list(palette))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return Sheet(name, base64.b64encode(buffer.getvalue()).decode("ascii"), len(images), width, height)


def _heat() -> list[int]:
    """Return red, green and blue of 256 levels."""
    at, *colours = np.array(_HEAT).T
    channels = [np.interp(np.linspace(0, 1, 256), at, colour) for colour in colours]
    return [int(value) for value in np.stack(channels, axis=1).ravel()]


def _decibels(psnr: float) -> str:
    return "equal" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]

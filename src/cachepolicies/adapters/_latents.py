"""Latents that a model is called with as tokens, or frames first: back onto their grid, ``(B, C, *axes)``.

And the grids of the tokens that a model makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import takewhile
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from cachepolicies.base.errors import InputError
from cachepolicies.base.foreign import writes_so_far

_GRIDS: MutableMapping[Tensor, tuple[int, tuple[int, int]]] = WeakTensorKeyDictionary()
"""Grids by the tensor of position ids that says them: it is read from the device once, not at every step."""

_IMAGE = 2
"""Axes of an image."""

_TOKENS, _VIDEO, _FRAMES = 3, 4, 5
"""Dimensions of tokens ``(B, L, C)``, images ``(B, C, H, W)`` and videos ``(B, F, C, H, W)``."""


def patches_by_ids(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return tokens ``(B, L, 4 C)`` as ``(B, C, 2 h, 2 w)``: patches of 2 x 2, at the rows and columns of ``img_ids``.

    Tokens of reference images, which follow with another first id, are left out.

    Raises:
        InputError: there are no ``img_ids``, or they are no grid.
    """
    height, width = _grid_of_ids(x, call)
    return patches(x, (1, height, width))[:, :, 0]


def patches_by_shapes(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return tokens ``(B, L, 4 C)`` as ``(B, C, f, 2 h, 2 w)``: the first of ``img_shapes``, in patches of 2 x 2.

    Tokens of reference images, which follow, are left out.

    Raises:
        InputError: there are no ``img_shapes``, or the samples differ in them.
    """
    return patches(x, _grid_of_shapes(x, call))


def tokens_of_video(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return tokens ``(B, f h w, C)`` as ``(B, C, f, h, w)``, by ``num_frames``, ``height`` and ``width``.

    Raises:
        InputError: one of these is missing, or there are other tokens beside the grid's.
    """
    sizes = [call.get(name) for name in ("num_frames", "height", "width")]
    if not all(isinstance(size, int) for size in sizes):
        raise _unknown(x, f"`num_frames`, `height` and `width` are {sizes} and say no grid")
    frames, height, width = (int(size or 0) for size in sizes)
    if x.ndim != _TOKENS or x.shape[1] != frames * height * width:
        raise _unknown(x, f"`num_frames`, `height` and `width` are {sizes}, another number of tokens")
    return x.reshape(x.shape[0], frames, height, width, -1).movedim(-1, 1)


def tokens_by_ids(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return tokens ``(B, L, C)`` as ``(B, C, h, w)``, at the rows and columns of ``img_ids``; see `patches_by_ids`.

    Raises:
        InputError: there are no ``img_ids``, or they are no grid.
    """
    height, width = _grid_of_ids(x, call)
    if x.ndim != _TOKENS or x.shape[1] < height * width:
        raise _unknown(x, f"a grid of {height} x {width} tokens was expected")
    return x[:, : height * width].reshape(x.shape[0], height, width, -1).movedim(-1, 1)


def last_grid_by_shapes(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return the last tokens of ``(B, L, C)`` as ``(B, C, f, h, w)``: those of the last of ``img_shapes``.

    Tokens of given images, which stand in front, are left out.

    Raises:
        InputError: there are no ``img_shapes``, or there are fewer tokens.
    """
    shapes = call.get("img_shapes")
    if not isinstance(shapes, (list, tuple)) or not shapes or not isinstance(shapes[0], (list, tuple)):
        raise _unknown(x, f"`img_shapes` is {shapes!r} and says no grid")
    frames, height, width = (int(size) for size in shapes[0][-1])
    count = frames * height * width
    if x.ndim != _TOKENS or x.shape[1] < count:
        raise _unknown(x, f"a grid of {frames} x {height} x {width} tokens was expected")
    return x[:, x.shape[1] - count :].reshape(x.shape[0], frames, height, width, -1).movedim(-1, 1)


def channels_last(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return a latent ``(B, *axes, C)`` as ``(B, C, *axes)``."""
    return x.movedim(-1, 1)


def frames_first(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return a video ``(B, F, C, H, W)`` as ``(B, C, F, H, W)``.

    Raises:
        InputError: it has other dimensions.
    """
    if x.ndim != _FRAMES:
        raise _unknown(x, "a video (B, F, C, H, W) was expected")
    return x.transpose(1, 2)


def unpatched(x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return an image ``(B, C, H, W)`` as it is; patches that the caller has packed are refused.

    Raises:
        InputError: it has other dimensions.
    """
    if x.ndim != _VIDEO:
        raise _unknown(x, "an image (B, C, H, W) was expected; let the model cut the patches itself")
    return x


def grid_by_ids(network: nn.Module, x: Tensor, call: Mapping[str, Any]) -> tuple[int, ...]:
    """Return height and width of the grid of ``img_ids``.

    Raises:
        InputError: there are no ``img_ids``, or they are no grid; or there are tokens of reference images beside it.
    """
    return _all_of(x, _grid_of_ids(x, call))


def grid_by_shapes(network: nn.Module, x: Tensor, call: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the first of ``img_shapes``.

    Raises:
        InputError: see `patches_by_shapes`; or there are tokens of reference images beside it.
    """
    return _all_of(x, _grid_of_shapes(x, call))


def grid_by_sizes(network: nn.Module, x: Tensor, call: Mapping[str, Any]) -> tuple[int, ...]:
    """Return ``num_frames``, ``height`` and ``width``, where every place of the latent is a token.

    Raises:
        InputError: see `tokens_of_video`.
    """
    return tuple(tokens_of_video(x, call).shape[2:])


def grid_of_patches(network: nn.Module, x: Tensor, call: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the axes of a latent ``(B, C, *axes)`` in patches of the network's ``config.patch_size``.

    A number is the side of a square, and ``config.patch_size_t``, where there is one, the frames of a patch; a tuple
    has all axes.

    Raises:
        InputError: the configuration has no such patch for these axes.
    """
    config: Any = getattr(network, "config", None)
    patch, axes = getattr(config, "patch_size", None), tuple(x.shape[2:])
    if isinstance(patch, int):
        patch = (patch, patch) if len(axes) == _IMAGE else (getattr(config, "patch_size_t", None) or 1, patch, patch)
    if not isinstance(patch, (tuple, list)) or len(patch) != len(axes):
        raise _unknown(x, f"`patch_size` of {type(network).__name__} is {patch!r}, not the patch of {len(axes)} axes")
    return tuple(size // side for size, side in zip(axes, patch, strict=True))


def grid_of_frames_first(network: nn.Module, x: Tensor, call: Mapping[str, Any]) -> tuple[int, ...]:
    """Return `grid_of_patches` of a video ``(B, F, C, H, W)``."""
    return grid_of_patches(network, frames_first(x, call), call)


def patches(x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return tokens ``(B, L, 4 C)``, the first of which are a grid, as ``(B, C, f, 2 h, 2 w)``.

    The channels of a token are those of its patch, channel first: (C, 2, 2), as diffusers' FLUX and Qwen-Image pack.

    Raises:
        InputError: there are fewer tokens than places, or the channels are not those of patches.
    """
    frames, height, width = grid
    count = frames * height * width
    if x.ndim != _TOKENS or x.shape[1] < count or x.shape[2] % 4:
        raise _unknown(x, f"a grid of {frames} x {height} x {width} tokens with patches of 2 x 2 was expected")
    rows, channels = x.shape[0], x.shape[2] // 4
    cut = x[:, :count].reshape(rows, frames, height, width, channels, 2, 2)
    return cut.permute(0, 4, 1, 2, 5, 3, 6).reshape(rows, channels, frames, 2 * height, 2 * width)


def _all_of(x: Tensor, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return a grid that has all tokens of a latent."""
    if x.shape[1] != math.prod(grid):
        raise _unknown(x, f"its first image has {' x '.join(map(str, grid))} tokens, and others follow")
    return grid


def _grid_of_shapes(x: Tensor, call: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return frames, height and width of the grid that ``img_shapes`` names first."""
    shapes = call.get("img_shapes")
    if not isinstance(shapes, (list, tuple)) or not shapes:
        raise _unknown(x, f"`img_shapes` is {shapes!r} and says no grid")
    found = {tuple(shape[0]) if isinstance(shape, list) else tuple(shape) for shape in shapes[: x.shape[0]]}
    if isinstance(shapes[0], tuple):  # one list for all samples
        found = {tuple(shapes[0])}
    if len(found) > 1:
        raise _unknown(x, f"its samples have different grids, {sorted(found)}: sample those of one size together")
    frames, height, width = (int(size) for size in found.pop())
    return frames, height, width


def _grid_of_ids(x: Tensor, call: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the grid of ``img_ids``, read from the device once."""
    ids = call.get("img_ids")
    if not isinstance(ids, Tensor) or ids.ndim not in (2, 3):
        raise _unknown(x, f"`img_ids` is a {type(ids).__name__} and says no grid")
    version = writes_so_far(ids)
    known = _GRIDS.get(ids)
    if known is None or known[0] != version:
        known = _GRIDS[ids] = (version, _grid(ids.detach().reshape(-1, *ids.shape[-2:]).tolist(), x))
    return known[1]


def _grid(batch: Sequence[Sequence[Sequence[float]]], x: Tensor) -> tuple[int, int]:
    """Return height and width of the grid that position ids (image, row, column, ...) run over, row by row."""
    ids = batch[0]
    if any(other != ids for other in batch[1:]):
        raise _unknown(x, "its samples have different `img_ids`: sample those of one size together")
    own = list(takewhile(lambda place: place[0] == ids[0][0], ids))
    width = len(list(takewhile(lambda place: place[1] == own[0][1], own)))
    height = len(own) // width
    rows, columns = [own[i * width][1] for i in range(height)], [place[2] for place in own[:width]]
    regular = [[row, column] for row in rows for column in columns] == [list(place[1:3]) for place in own]
    rises = rows == sorted(set(rows)) and columns == sorted(set(columns))
    if not (regular and rises) or any(place[0] == ids[0][0] for place in ids[len(own) :]):
        raise _unknown(x, "its `img_ids` do not run over a grid row by row")
    return height, width


def _unknown(x: Tensor, why: str) -> InputError:
    return InputError(
        f"where the tokens of the latent {tuple(x.shape)} lie on their grid cannot be told: {why}. Use a policy "
        "and a substitute that do not look at it along its axes, or an adapter whose `unpack` and `tokens` know"
    )

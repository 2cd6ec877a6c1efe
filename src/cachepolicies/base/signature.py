"""The calling convention of a denoiser: where x and t are among its arguments, and how to pass some rows only."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

from cachepolicies.base.errors import InputError, SettingsError
from cachepolicies.base.host import index_on

X_NAMES = ("x", "hidden_states", "sample", "latents")
_NO_LEVEL = re.compile(
    r"(^|_)(hidden_states|latents?|embeds?|embeddings?|ids|indexes|indices|mask|tokens|context|key|value|memory|residual"
    r"|image_rotary_emb|pooled)$"
)
"""Names of arguments that are no noise level, wherever they stand."""

T_NAMES = ("t", "timestep", "sigma", "timesteps")


_POSITIONS = re.compile(r"rotary|rope|freqs|_ids$|_grid|position")
"""Names of arguments that have one entry a token, whatever their shape."""

_FEATURES = re.compile(
    r"controlnet|additional_residual|adapter_states|timestep|sigma|^(audio|sound|action)_(hidden_states|latents)$"
)
"""Names of arguments by which networks take features that were computed for the step."""


@frozen(eq=False)
class RowIndex:
    """Some rows of a batch, as the host knows them and as a device takes them.

    Attributes:
        rows: n row numbers.
        index: ``(n,)`` the same as an int64 tensor.
    """

    rows: Sequence[int]
    index: Tensor

    @classmethod
    def of(cls, rows: Sequence[int], device: torch.device) -> RowIndex:
        """Put row numbers on a device, without waiting for it."""
        return cls(rows, index_on(rows, device))

    def on(self, device: torch.device) -> Tensor:
        """Return the index on a device."""
        return self.index.to(device, non_blocking=True)


@frozen(eq=False)
class Signature:
    """Where a denoiser takes its latent and its noise level.

    Attributes:
        x_names: keyword names that may hold x.
        t_names: keyword names that may hold t.
        x_place: position of x.
        t_place: position of t.
        names: names of the positional parameters, as far as they are known.
        rows: names of the arguments that have one row per sample, to how they have; ``None`` to tell by their first
            dimension. ``"first"`` and ``"second"`` are dimensions of its tensors, ``"list"`` is one entry a sample,
            ``"either"`` is that for a list, else the first dimension.
    """

    x_names: tuple[str, ...]
    t_names: tuple[str, ...]
    x_place: int
    t_place: int
    names: tuple[str, ...]
    rows: Mapping[str, str] | None

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        x_name: str | None = None,
        t_name: str | None = None,
        batched: Collection[str] | None = None,
        rows: Mapping[str, str] | None = None,
    ) -> Signature:
        """Inspect a model.

        Args:
            model: any callable ``f(x, t, *args, **kwargs)``.
            x_name: name of its latent argument; by default one of ``x, hidden_states, sample, latents``, or else the
                first.
            t_name: name of its noise-level argument; by default one of ``t, timestep, sigma, timesteps``, or else the
                second.
            batched: names of the arguments with one row a sample, or one entry if they are lists.
            rows: instead of ``batched``, see the class.

        Raises:
            SettingsError: a name given is not an argument of the model.
        """
        names, keyword_only, open_ended = _parameters(model)
        for setting, name in (("x_name", x_name), ("t_name", t_name), *(("batched", b) for b in batched or ())):
            if name is not None and name not in (*names, *keyword_only) and not open_ended:
                known = ", ".join((*names, *keyword_only))
                raise SettingsError(f"{setting} names {name!r}, but the model's arguments are {known}")
        x_names: tuple[str, ...] = (x_name,) if x_name else X_NAMES
        t_names: tuple[str, ...] = (t_name,) if t_name else T_NAMES
        x_place, t_place = _place(names, keyword_only, x_names, 0), _place(names, keyword_only, t_names, 1)
        x_names, t_names = _with_name_at(x_names, names, x_place), _with_name_at(t_names, names, t_place)
        if x_place == t_place:
            raise SettingsError(
                f"x and t were both looked for at position {x_place} of ({', '.join(names)}); set x_name and t_name"
            )
        return cls(
            x_names,
            t_names,
            x_place,
            t_place,
            names,
            rows if batched is None else dict.fromkeys(batched, "either"),
        )

    def refuse_without_level(self, model: Callable[..., Any]) -> None:
        """Refuse a module that takes no noise level: a part of a denoiser, not one. For a t that nobody has named.

        Raises:
            SettingsError: where t would stand is nothing, or an argument that is never one, such as a mask or the text.
        """
        names, _, open_ended = _parameters(model)
        if self.t_place < 0 or set(T_NAMES) & set(names) or (open_ended and self.t_place >= len(names)):
            return
        if self.t_place >= len(names) or _NO_LEVEL.search(names[self.t_place]):
            raise SettingsError(
                f"{type(model).__name__} takes no noise level ({', '.join(names)}): it is a part of a denoiser. Enable "
                "the cache on the denoiser, with site='path.of.the.part'; or say t_name=... where one of these is "
                "the level"
            )

    def find(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Return x and t of a call.

        Raises:
            InputError: one of them is missing, or x is no floating-point tensor with a batch dimension.

        A latent given as a list with one tensor a sample, all of one shape, is stacked.
        """
        x = self._argument("x", self.x_names, self.x_place, args, kwargs)
        if isinstance(x, (list, tuple)) and x and all(isinstance(item, Tensor) for item in x):
            shapes = sorted({tuple(item.shape) for item in x})
            if len(shapes) > 1:
                raise InputError(
                    f"x is a list of latents of different shapes, {shapes}; sample those of one shape together"
                )
            x = torch.stack(list(x))
        t = self._argument("t", self.t_names, self.t_place, args, kwargs)
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InputError(f"x is {kind}; the latent is a floating-point tensor (B, ...)")
        if x.ndim < 1 or x.numel() == 0:
            raise InputError(f"x has shape {tuple(x.shape)}; the latent is (B, ...) with at least one element")
        return x, t

    def moved(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, x: Tensor | None = None, t: Any = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with another x, another t, or both.

        Args:
            args: of the call.
            kwargs: of the call.
            x: ``(B, ...)`` instead of the latent; handed on as a list where the latent came as one.
            t: instead of the noise level, as the denoiser takes it.
        """
        placed, named = list(args), dict(kwargs)
        for value, names, place in ((x, self.x_names, self.x_place), (t, self.t_names, self.t_place)):
            if value is None:
                continue
            keyword = next((name for name in names if name in named), None)
            before = placed[place] if keyword is None else named[keyword]
            made = list(value) if isinstance(before, (list, tuple)) and isinstance(value, Tensor) else value
            if keyword is None:
                placed[place] = made
            else:
                named[keyword] = made
        return tuple(placed), named

    def conditioning(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a call is conditioned on: every argument but x, t, and what is computed for the step.

        A ControlNet's features are computed from x and t, and differ from step to step; they tell no branch.

        Returns:
            The arguments by name, positional ones of no known name by ``"argument 3"``; those that are ``None`` are as
            good as left out.
        """
        rest = {}
        for place, value in enumerate(args):
            if value is None or place in (self.x_place, self.t_place):
                continue
            name = self.names[place] if place < len(self.names) else f"argument {place}"
            if not _is_feature(name):
                rest[name] = value
        for name, value in kwargs.items():
            if value is None or name in self.x_names or name in self.t_names or _is_feature(name):
                continue
            rest[name] = value
        return rest

    def by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name; positional ones whose names are not known are left out."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}

    def check_rows(self, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int) -> None:
        """Check that every tensor argument can be sliced by rows.

        Raises:
            InputError: the first dimension of one is neither 1 nor the batch size.
        """
        self.slice(args, kwargs, batch, None)

    def slice(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], batch: int, rows: RowIndex | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments for some rows of the batch.

        Args:
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            batch: rows of x.
            rows: which ones, ``None`` to take all (and only check).

        Returns:
            The arguments with every batched tensor, also in nested lists, tuples and dicts, cut to ``rows``.

        Raises:
            InputError: see `check_rows`.
        """
        positional = [
            self._slice_argument(self.names[place] if place < len(self.names) else f"argument {place}", v, batch, rows)
            for place, v in enumerate(args)
        ]
        return positional, {name: self._slice_argument(name, v, batch, rows) for name, v in kwargs.items()}

    def _slice_argument(self, name: str, value: Any, batch: int, rows: RowIndex | None) -> Any:
        always = name in self.x_names or name in self.t_names
        kind = "either" if self.rows is None and always else (self.rows or {}).get(name)
        if self.rows is not None and kind is None:
            if not always:
                return value if _POSITIONS.search(name) else _slice_inside(name, value, batch, rows)
            kind = "either"
        if kind in ("list", "either") and isinstance(value, (list, tuple)):
            return _slice_items(name, value, batch, rows)
        if kind == "second" and isinstance(value, Tensor):
            return _slice_second(name, value, batch, rows)
        return self._slice_value(name, value, batch, rows)

    def _slice_value(self, name: str, value: Any, batch: int, rows: RowIndex | None) -> Any:
        if isinstance(value, Tensor):
            if value.ndim == 0 or (value.shape[0] == 1 and batch != 1):
                return value
            if value.shape[0] != batch:
                raise InputError(
                    f"argument {name!r} has shape {tuple(value.shape)}: its first dimension fits neither 1 nor the "
                    f"batch of {batch}. Name the arguments that have one row a sample, batched=(...), or decide once "
                    "for the whole batch, per_sample=False"
                )
            return value if rows is None else value.index_select(0, rows.on(value.device))
        if isinstance(value, np.ndarray) and value.ndim and value.shape[0] == batch:
            return value if rows is None else value[list(rows.rows)]
        if isinstance(value, Mapping):
            return _filled(
                value, {key: self._slice_value(f"{name}[{key!r}]", item, batch, rows) for key, item in value.items()}
            )
        if isinstance(value, (list, tuple)) and any(isinstance(item, (Tensor, list, tuple, dict)) for item in value):
            items = [self._slice_value(f"{name}[{i}]", item, batch, rows) for i, item in enumerate(value)]
            return _as_before(value, items)
        if isinstance(value, list) and len(value) == batch != 1:
            raise InputError(
                f"argument {name!r} is a list with as many entries as the batch has rows. If it has one a sample, name "
                "it in batched=(...), together with every other argument that has; if not, pass it as a tuple"
            )
        return _opaque(name, value, batch)

    def _argument(
        self, what: str, keywords: Sequence[str], place: int, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        for keyword in keywords:
            if keyword in kwargs:
                return kwargs[keyword]
        if 0 <= place < len(args):
            return args[place]
        raise InputError(
            f"the call has no {what}: it was looked for at position {place} and as {', '.join(keywords)}=; set "
            f"{what}_name to the name of the argument"
        )


def _slice_inside(name: str, value: Any, batch: int, rows: RowIndex | None) -> Any:
    """Return what is nested in an argument that an adapter does not name, cut where it has one row a sample.

    Raises:
        InputError: there is no telling: a tensor has several times the batch's rows, or stands in an object.
    """
    if isinstance(value, Mapping):
        return _filled(value, {key: _inner(f"{name}[{key!r}]", item, batch, rows) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return _as_before(value, [_inner(f"{name}[{i}]", item, batch, rows) for i, item in enumerate(value)])
    return value if isinstance(value, (Tensor, np.ndarray)) else _opaque(name, value, batch)


def _inner(name: str, value: Any, batch: int, rows: RowIndex | None) -> Any:
    if isinstance(value, (Mapping, list, tuple)):
        return _slice_inside(name, value, batch, rows)
    if not isinstance(value, (Tensor, np.ndarray)):
        return _opaque(name, value, batch)
    first = value.shape[0] if value.ndim else 1
    if first in (0, 1) or batch == 1 or first % batch:
        return value
    if first != batch:
        raise InputError(
            f"{name} has shape {tuple(value.shape)}, a multiple of the batch of {batch} rows: there is no telling "
            "which belong to a sample. Decide once for the whole batch, per_sample=False"
        )
    if rows is None:
        return value
    return value.index_select(0, rows.on(value.device)) if isinstance(value, Tensor) else value[list(rows.rows)]


def _opaque(name: str, value: Any, batch: int) -> Any:
    """Return an object that holds no rows as far as can be seen.

    Raises:
        InputError: it has a tensor among its attributes that could have one row a sample, and cannot be cut.
    """
    if batch == 1 or isinstance(value, (nn.Module, type)) or callable(value):
        return value
    for attribute, held in getattr(value, "__dict__", {}).items():
        if isinstance(held, Tensor) and held.ndim and held.shape[0] and held.shape[0] % batch == 0:
            raise InputError(
                f"argument {name!r} is a {type(value).__name__} that holds a tensor of shape {tuple(held.shape)}, "
                f"{attribute!r}: rows of the batch of {batch} cannot be taken out of it. Pass what it holds in dicts, "
                "lists or tuples, or decide once for the whole batch, per_sample=False"
            )
    return value


def _filled(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the same kind with these items."""
    if type(value) is dict or not isinstance(value, MutableMapping):
        return items
    made = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made


def _slice_items(name: str, value: Any, batch: int, rows: RowIndex | None) -> Any:
    if len(value) != batch:
        raise InputError(f"argument {name!r} has {len(value)} entries and the batch {batch} rows; batched= names it")
    return value if rows is None else _as_before(value, [value[row] for row in rows.rows])


def _slice_second(name: str, value: Tensor, batch: int, rows: RowIndex | None) -> Tensor:
    if value.ndim < 2 or value.shape[1] != batch:
        raise InputError(
            f"argument {name!r} has shape {tuple(value.shape)}; its second dimension is the batch of {batch}"
        )
    return value if rows is None else value.index_select(1, rows.on(value.device))


def _as_before(value: Any, items: list[Any]) -> Any:
    """Return the items in a container of the same kind."""
    if isinstance(value, tuple):
        return getattr(type(value), "_make", tuple)(items)
    return items


def _parameters(model: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    target = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # a callable without a readable signature
        return (), (), True
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(p.name for p in parameters if p.kind in kinds)
    keyword_only = tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
    open_ended = any(p.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for p in parameters)
    return names, keyword_only, open_ended


def _place(names: Sequence[str], keyword_only: Sequence[str], wanted: Sequence[str], otherwise: int) -> int:
    """Return the position of the first wanted name; -1 where it can only come by keyword."""
    found = next((names.index(name) for name in wanted if name in names), None)
    if found is not None:
        return found
    return -1 if any(name in keyword_only for name in wanted) else otherwise


def _with_name_at(wanted: tuple[str, ...], names: Sequence[str], place: int) -> tuple[str, ...]:
    """Return the names that an argument is looked for by, with that of the position where it is expected."""
    at = names[place] if 0 <= place < len(names) else None
    return wanted if at is None or at in wanted else (*wanted, at)


@functools.cache
def _is_feature(name: str) -> bool:
    """Return whether an argument holds features computed for the step; asked at every call, hence remembered."""
    return _FEATURES.search(name) is not None

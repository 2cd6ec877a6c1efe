"""One call of the denoiser by the sampler, as a site runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen
from torch import Tensor

from cachepolicies.base.errors import InputError, RowsUnknownError
from cachepolicies.base.signature import RowIndex, Signature


@frozen(eq=False)
class Invocation:
    """One call of the denoiser by the sampler, to be run on the whole batch or on some of its rows.

    Attributes:
        function: the denoiser.
        args: its positional arguments.
        kwargs: its keyword arguments.
        signature: where x and t are among them, and how rows are taken.
        x: ``(B, ...)`` the latent.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    signature: Signature
    x: Tensor

    @property
    def batch(self) -> int:
        """B, the rows of the batch."""
        return self.x.shape[0]

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments by name, as they came."""
        return self.signature.by_name(self.args, self.kwargs)

    def run(self, rows: Sequence[int] | None) -> Any:
        """Call the denoiser on some rows, in this order, or with the arguments as they came (``None``).

        Raises:
            InputError: an argument cannot be cut into rows.
        """
        if rows is None:
            return self.function(*self.args, **self.kwargs)
        args, kwargs = self.signature.slice(self.args, self.kwargs, self.batch, RowIndex.of(rows, self.x.device))
        return self.function(*args, **kwargs)

    def run_at(self, *, x: Tensor | None = None, t: Any = None) -> Any:
        """Call the denoiser with another latent, another noise level, or both; the rest of the arguments as they came.

        Args:
            x: ``(B, ...)`` instead of the latent.
            t: instead of the noise level, as the denoiser takes it.
        """
        args, kwargs = self.signature.moved(self.args, self.kwargs, x=x, t=t)
        return self.function(*args, **kwargs)

    def with_latent(self, x: Tensor) -> Invocation:
        """Return the same call with another latent ``(B, ...)``."""
        args, kwargs = self.signature.moved(self.args, self.kwargs, x=x)
        return evolve(self, args=args, kwargs=kwargs, x=x)

    @property
    def t(self) -> Any:
        """The noise level, as the denoiser is called with."""
        return self.signature.find(self.args, self.kwargs)[1]

    def check_rows(self) -> None:
        """Check that every argument can be cut into rows, before a part of the batch is first asked for.

        Raises:
            RowsUnknownError: one cannot.
        """
        try:
            self.signature.check_rows(self.args, self.kwargs, self.batch)
        except InputError as error:
            raise RowsUnknownError(error) from error

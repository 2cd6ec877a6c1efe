"""What TeaCache and MagCache need of a calibration: a fitted polynomial, and a table of ratios."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Polynomial as Series
from numpy.typing import ArrayLike, NDArray

from cachepolicies.base.errors import ProfileError, SettingsError
from cachepolicies.profiles.schema import Polynomial


def fit_polynomial(signal_change: ArrayLike, output_change: ArrayLike, degree: int = 4) -> Polynomial:
    """Fit the output's relative change as a polynomial of the signal's, by least squares over all points.

    TeaCache (arXiv 2411.19108, section 3.3) fits one polynomial, of 4th degree in its released code, to the relative L1
    changes over a step of all steps and samples.

    Args:
        signal_change: relative L1 change of the signal over a step, dimensionless; any shape, ``(N - 1, S)`` in a
            profile's table ``signal_change.<signal>``.
        output_change: that of the output, of the same shape.
        degree: of the polynomial.

    Returns:
        The polynomial in float64, with its coefficient of determination R^2 over these points; ``None`` for R^2 where
        the output's change is the same at every point, so that there is no variance to explain.

    Raises:
        ProfileError: the shapes differ, a value is not finite or is negative, or there are fewer than
            ``degree + 1`` different changes of the signal.
        SettingsError: the degree is not an integer >= 0.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
        raise SettingsError(f"degree={degree!r}; give an integer >= 0")
    change, output = _changes("signal_change", signal_change), _changes("output_change", output_change)
    if change.shape != output.shape:
        raise ProfileError(
            f"signal_change has shape {change.shape} and output_change {output.shape}; give one of each for every step "
            "and sample"
        )
    x, y = change.reshape(-1), output.reshape(-1)
    distinct = len(np.unique(x))
    if distinct <= degree:
        raise ProfileError(
            f"a polynomial of degree {degree} needs at least {degree + 1} different changes of the signal, and there "
            f"are {distinct}; calibrate with more steps or samples, or give a smaller degree"
        )
    # solved on [-1, 1], where powers of small changes are not lost to rounding
    ascending = np.zeros(degree + 1)
    solved = Series.fit(x, y, degree).convert().coef
    ascending[: len(solved)] = solved
    coefficients = tuple(ascending[::-1].tolist())
    return Polynomial(coefficients, _r_squared(np.polyval(coefficients, x), y))


def mean_norm_ratio(norms: ArrayLike, norms_before: ArrayLike) -> NDArray[np.float64]:
    """Return the mean over the tokens of ``||r_k|| / ||r_{k-1}||`` for every sample.

    MagCache (arXiv 2506.09045) averages the ratios of the tokens' norms, which is not the ratio of their averages.

    Args:
        norms: ``(S, T)`` norm over the channels of the residual of every sample and token, at a step.
        norms_before: ``(S, T)`` that at the step before.

    Returns:
        ``(S,)`` float64, dimensionless.

    Raises:
        ProfileError: the shapes differ or are not ``(S, T)``, or a norm is not finite, or not positive before.
    """
    now, before = _changes("norms", norms), _changes("norms_before", norms_before)
    if now.ndim != 2 or now.shape != before.shape or now.shape[1] == 0:
        raise ProfileError(
            f"norms has shape {now.shape} and norms_before {before.shape}; give (samples, tokens) for both"
        )
    if not before.all():
        sample, token = (int(i) for i in np.argwhere(before == 0)[0])
        raise ProfileError(
            f"the residual of sample {sample} is zero at token {token}, so that its size has no ratio; leave out "
            "tokens that the model masks, and check that the blocks change their input"
        )
    ratios: NDArray[np.float64] = (now / before).mean(axis=1)
    return ratios


def magnitude_ratios(ratios: ArrayLike) -> NDArray[np.float64]:
    """Return the table ``magnitude_ratio`` of a profile from the ratios of every step to the one before.

    Args:
        ratios: ``(N - 1, S)`` mean ratios (see `mean_norm_ratio`) of the steps 1 to N - 1; ``(0, S)`` for one step.

    Returns:
        ``(N, S)`` float64; row 0 is 1, as the first step has no predecessor.

    Raises:
        ProfileError: another number of dimensions, or a ratio that is not finite and positive.
    """
    table = _changes("ratios", ratios)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ProfileError(f"ratios has shape {table.shape}; give (steps - 1, samples)")
    if not table.all():
        step, sample = (int(i) for i in np.argwhere(table == 0)[0])
        raise ProfileError(f"the ratio of step {step + 1} of sample {sample} is 0: the residual vanishes there")
    return np.vstack([np.ones((1, table.shape[1])), table])


def _r_squared(fitted: NDArray[np.float64], values: NDArray[np.float64]) -> float | None:
    total = float(((values - values.mean()) ** 2).sum())
    return None if total == 0 else 1.0 - float(((values - fitted) ** 2).sum()) / total


def _changes(what: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProfileError(f"{what} is not a rectangular array of numbers ({error})") from error
    for problem, where in (("not finite", ~np.isfinite(array)), ("negative", array < 0)):
        if where.any():
            index = tuple(int(i) for i in np.argwhere(where)[0])
            raise ProfileError(f"{what} is {array[index]} at {list(index)}: {problem}; check the calibration run")
    return array

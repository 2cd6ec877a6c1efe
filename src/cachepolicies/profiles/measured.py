"""A profile that a calibration measured."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cachepolicies.base.errors import ProfileError
from cachepolicies.profiles.checks import check_noise_levels
from cachepolicies.profiles.format import RECALIBRATE, Origin
from cachepolicies.profiles.record import ProfileRecord


@frozen
class Profile(ProfileRecord):
    """What a calibration measured for one (model, scheduler).

    Curves and tables are looked up by name, so that a policy from anywhere may add its own. The built-in names are

    - the curves ``alpha_x`` and ``alpha_t`` (SenCache, arXiv 2602.24208, eqs. 11 and 12);
    - the curve ``rho``, the correlation of the two differences in these equations, in [-1, 1];
    - the curve ``weight``: RMS change of the finished sample per RMS change of the output at a step, for every step or
      some of them. It belongs to the step from there to the next timestep, and grows with its length;
    - the tables ``displacement`` D(r, k), the RMS of x_k - x_r, and ``change`` E(r, k), the RMS of
      f(x_k, t_k) - f(x_r, t_r), both ``(N, N, S)``, float64 (float32 in earlier profiles). Norms are root mean squares
      per element;
    - the tables ``magnitude_ratio``, or one ``magnitude_ratio.<stream>`` for every stream (MagCache, arXiv
      2506.09045): ``(N, S)`` float64, row k is the size of the residual at step k over that at step k - 1, row 0 is 1;
    - the tables ``signal_change.<signal>`` and ``output_change``: ``(N - 1, S)``, relative L1 changes from step to
      step, the points that a polynomial was fitted to (TeaCache, arXiv 2411.19108).

    - the table ``filtered_change`` ``(N - 1, S)``, the relative L1 change from step to step of the latent through
      SeaCache's filter (arXiv 2602.18993);
    - the tables ``displacement_l1`` and ``change_l1``, ``(N, N, S)`` float32, and ``output_l1`` ``(N, S)``: mean
      magnitudes of the differences of latents and outputs, and of the outputs (EasyCache, arXiv 2507.02860).

    Attributes:
        name: what it is called in messages and lists.
        model: the network.
        prediction_type: ``"velocity"``, ``"noise"``, ``"x0"`` or ``"v"``.
        latent_shape: shape of one sample, without the batch.
        scheduler: the scheduler.
        timesteps: N values of the scheduler's t, strictly decreasing, one per step.
        final_t: t of the sample, or None where the denoiser cannot be evaluated there.
        dtype: of the latents, for example ``"float32"``.
        guidance: guidance scale in the calibrated denoiser, None without guidance.
        samples: S, the number of calibration samples.
        seeds: one per sample, or empty.
        trajectory: ``"model"`` or ``"noised"``, see `cachepolicies.calibrate`; or ``"recorded"``, on runs of somebody's
            own, whose scheduler and prediction type may be ``None``.
        evaluations: denoiser evaluations made per sample.
        versions: distribution name to version.
        units: table name to its unit.
        created: UTC time in ISO 8601; provenance only, left out of comparisons.
        notes: free text.
        curves: name to `Curve` with S columns, or one where the quantity belongs to all samples.
        tables: name to array; read-only.
        origin: ``"measured"``; it is not given.
        stated_steps: ``None``: the timesteps say how many there are.
        polynomials: signal name to the polynomial that estimates the output's change from the signal's.
        settings: policy name to the settings that it uses with this profile where the user gives none.
        recommended: settings from the source with the speed-ups that it states.
        source: where published numbers are from: repositories, files, papers, checksums; plain JSON.
        irregularities: what about the published numbers is odd, or cannot be expressed by the settings.
        trials: what planned runs were off by on samples that their plans were not made from.
        version: of the format.

    Raises:
        ProfileError: a field is missing, out of range, unsorted, not finite or has the wrong shape.
    """

    _origin: ClassVar[Origin] = "measured"

    def _check_own(self) -> None:
        known: tuple[str, ...] = ("latent_shape", "dtype")
        if self.trajectory != "recorded":  # of a loop of somebody's own, nobody may know them
            known = ("prediction_type", "latent_shape", "scheduler", "dtype")
        for what in known:
            if getattr(self, what) is None:
                raise ProfileError(f"field {what!r} is None, which only a published profile may have; {RECALIBRATE}")
        if self.stated_steps is not None:
            raise ProfileError(
                f"field 'stated_steps' is {self.stated_steps}, which only a published profile may have; "
                "a measured one has its timesteps"
            )
        check_noise_levels("field 'timesteps'", self.timesteps)

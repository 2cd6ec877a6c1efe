"""Settings that were published for methods without tables of numbers: those of the plugins of this repository.

From the papers and the authors' released code, as settings of our policies and substitutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


@frozen
class PublishedSettings:
    """Settings of one method for one model.

    Attributes:
        profile: name of the profile that they go into.
        class_name: class of the model, where the profile is not there for another reason.
        policy: name of the policy.
        settings: of the policy.
        steps: of the run that they are for, where that is said.
        source: paper or repository.
        substitute: spec of what stands in, where it is not the policy's own choice.
        speedup: factor that is stated.
        note: what else is said.
    """

    profile: str
    class_name: str
    policy: str
    settings: Mapping[str, Any]
    steps: int | None
    source: str
    substitute: str | None = field(default=None, kw_only=True)
    speedup: float | None = field(default=None, kw_only=True)
    note: str | None = field(default=None, kw_only=True)


_PAB = "PAB, arXiv:2408.12588, github.com/NUS-HPC-AI-Lab/VideoSys"
_ADA = "AdaCache, arXiv:2411.02397"
_FASTER = "FasterCache, arXiv:2410.19355"
_DEEP = "DeepCache, arXiv:2312.00858, github.com/horseee/DeepCache"
_SPECA = "SpeCa, arXiv:2509.11628"
_DI = "DiCache, arXiv:2508.17356"

_LATTE, _COG, _SORA = "LatteTransformer3DModel", "CogVideoXTransformer3DModel", "STDiT3"
_PLAN, _FLUX, _HUNYUAN = "LatteT2V", "FluxTransformer2DModel", "HunyuanVideoTransformer3DModel"

FAST = [[0.08, 6], [0.16, 5], [0.24, 4], [0.32, 3], [0.40, 2], [1.0, 1]]
MANY = [[0.03, 12], [0.05, 10], [0.07, 8], [0.09, 6], [0.11, 4], [1.0, 3]]

SETTINGS = (
    PublishedSettings(
        "latte-1",
        _LATTE,
        "pab",
        {
            "spatial": 2,
            "temporal": 3,
            "cross": 6,
            "window": [100.0, 800.0],
            "mlp_blocks": 5,
            "mlp_timesteps": [720.0, 640.0, 560.0, 480.0, 400.0],
            "mlp_steps": 2,
        },
        50,
        _PAB,
    ),
    PublishedSettings(
        "open-sora-1.2",
        _SORA,
        "pab",
        {
            "spatial": 2,
            "temporal": 4,
            "cross": 6,
            "window": [450.0, 930.0],
            "mlp_blocks": 5,
            "mlp_timesteps": [864.0, 788.0, 676.0],
            "mlp_steps": 2,
        },
        30,
        _PAB,
    ),
    PublishedSettings(
        "open-sora-plan-1.1",
        _PLAN,
        "pab",
        {"spatial": 2, "temporal": 4, "cross": 6, "window": [100.0, 850.0]},
        150,
        _PAB,
        note="the MLPs of blocks 0 to 6 are held too, at 14 timesteps from 738 to 426 that are not listed here",
    ),
    PublishedSettings(
        "cogvideox-5b", _COG, "pab", {"spatial": 2, "temporal": None, "cross": None, "window": [100.0, 850.0]}, 50, _PAB
    ),
    PublishedSettings(
        "open-sora-1.2", _SORA, "adacache", {"codebook": FAST, "block": 13}, 30, _ADA, note="fast; temporal attention"
    ),
    PublishedSettings(
        "open-sora-1.2", _SORA, "adacache", {"codebook": MANY, "block": 13}, 100, _ADA, note="temporal attention"
    ),
    PublishedSettings(
        "latte-1",
        _LATTE,
        "fastercache",
        {"start_after": 0.32, "every": 2},
        50,
        _FASTER,
        substitute="last-change:weight=0.5",
    ),
    PublishedSettings(
        "latte-1",
        _LATTE,
        "cfg-cache",
        {"start_after": 0.36, "every": 5},
        50,
        _FASTER,
        substitute="from-branch:low=1.1,low_until=0.9,high=1.1,high_from=0.9",
    ),
    PublishedSettings(
        "cogvideox-5b",
        _COG,
        "fastercache",
        {"start_after": 0.36, "every": 3},
        50,
        _FASTER,
        substitute="last-change:weight=0.3",
    ),
    PublishedSettings(
        "cogvideox-5b",
        _COG,
        "cfg-cache",
        {"start_after": 0.36, "every": 5},
        50,
        _FASTER,
        substitute="from-branch:low=1.1,low_until=0.8,high=1.1,high_from=0.6",
    ),
    PublishedSettings(
        "open-sora-1.2",
        _SORA,
        "cfg-cache",
        {"start_after": 0.4, "every": 5},
        30,
        _FASTER,
        substitute="from-branch:low=1.15,low_until=0.8333,high=1.15,high_from=0.6667",
    ),
    PublishedSettings(
        "open-sora-plan-1.1",
        _PLAN,
        "fastercache",
        {"start_after": 0.3, "every": 3},
        150,
        _FASTER,
        substitute="last-change:weight=0.3",
    ),
    PublishedSettings(
        "flux.1-dev",
        _FLUX,
        "speca",
        {"base": 7.0, "decay": 0.3, "unverified": 2, "most": 8, "floor": 0.1, "warm_up": 3},
        50,
        _SPECA,
        substitute="taylor:order=2,differences=taylorseer,time=index",
    ),
    PublishedSettings(
        "hunyuanvideo",
        _HUNYUAN,
        "speca",
        {"base": 1.0, "decay": 0.1, "unverified": 4, "most": 12, "floor": 0.1, "warm_up": 1},
        50,
        _SPECA,
        substitute="taylor:order=1,differences=taylorseer,time=index",
    ),
    PublishedSettings(
        "flux.1-dev",
        _FLUX,
        "dicache",
        {"probe": 1, "threshold": 0.4, "start_after": 0.2},
        None,
        "DiCache, arXiv:2508.17356",
    ),
    PublishedSettings(
        "dit-xl-2-512",
        "DiTTransformer2DModel",
        "fora",
        {"every": 3},
        250,
        "FORA, arXiv:2407.01425",
        note="DDIM and DDPM, guidance 1.5",
    ),
    PublishedSettings(
        "pixart-alpha",
        "PixArtTransformer2DModel",
        "delta-dit",
        {"outline": 0.6},
        20,
        "Delta-DiT, arXiv:2406.01125",
        speedup=1.6,
        note="the number of blocks and the interval are not verified",
    ),
    PublishedSettings(
        "stable-diffusion-1.5", "UNet2DConditionModel", "deepcache", {"interval": 5}, 50, _DEEP, speedup=2.3
    ),
)
"""All of them, in the order in which they are written."""

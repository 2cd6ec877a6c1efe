"""A pipeline beside the wrapper: the trained video DiT in `WanPipeline`, calibrated where it runs, and as a denoiser.

``python bench/wan.py``: both calibrations take the same samples and the same steps for the weights. Every row of
``bench/results/wan.csv`` is a model, a way of asking and a budget, in dB against the uncached samples of 16 seeds that
no calibration saw; rows that are there already are left out.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import cachepolicies
from cachepolicies import CachedDenoiser, CalibrationSamples, Profile, calibrate, load_profile, sample, save_profile
from cachepolicies.comparison import Workload
from cachepolicies.comparison.metrics import psnr
from cachepolicies.reference import moving_digits, workloads
from cachepolicies.reference.workloads import GUIDANCE, STEPS

OUT = Path(__file__).parent / "results" / "wan.csv"
FIELDS = ("model", "asked", "budget", "wrapper_nfe", "pipeline_nfe", "wrapper", "pipeline")
MODELS = ("video_dit", "video_dit_twin")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "sencache": {"policy": "sencache"},
    "magcache": {"policy": "magcache", "site": "blocks"},
    "teacache": {"policy": "teacache", "site": "blocks", "signal": "modulated_input"},
}
BUDGETS = (13, 17, 22)
CALIBRATED_ON = range(1000, 1008)
LEARNED_FROM = range(1000, 1001)
SEEDS = range(3000, 3016)
ROWS = 4
"""Videos of one generation of a calibration."""


def main(models: Sequence[str] = MODELS) -> None:
    """Measure what the file lacks."""
    torch.set_grad_enabled(False)
    known = _known()
    with OUT.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not known:
            writer.writeheader()
        for model in models:
            for asked in (*WAYS, "learned"):
                for budget in BUDGETS:
                    if (model, asked, str(budget)) not in known:
                        writer.writerow(
                            {"model": model, "asked": asked, "budget": budget, **_row(model, asked, budget)}
                        )
                        file.flush()


def _row(model: str, asked: str, budget: int) -> dict[str, str]:
    workload, pipe = _workload(model), _pipeline(model)
    inputs, scheduler = workload.draw(SEEDS), _scheduler()

    def in_a_loop(denoiser: Any, seeds: Sequence[int] = SEEDS) -> Tensor:
        drawn = workload.draw(seeds)
        return workload.pictures(sample(denoiser, scheduler, drawn.noise, *drawn.args, num_steps=STEPS))

    reference = in_a_loop(workload.denoiser)
    with tempfile.TemporaryDirectory() as folder:
        learn: Any = folder if asked == "learned" else False
        wrapped, in_place = (None, None) if asked == "learned" else _profiles(model)
        settings: dict[str, Any] = {"site": "output"} | dict(WAYS.get(asked, {}), budget=budget, learn=learn)
        cached = CachedDenoiser(workload.denoiser, scheduler=scheduler, profile=wrapped, **settings)
        if asked == "learned":
            in_a_loop(cached, LEARNED_FROM)
        by_wrapper = in_a_loop(cached)
    with tempfile.TemporaryDirectory() as folder:
        learn = folder if asked == "learned" else False
        settings["learn"] = learn
        with cachepolicies.enable(pipe, profile=in_place, **settings) as enabled:
            if asked == "learned":
                pipe(**_call(workload, LEARNED_FROM))
            latents = pipe(**_call(workload, SEEDS), return_dict=False)[0]
            nfe = enabled.trace.nfe / 2.0
    by_pipeline = workload.pictures(latents)
    assert len(inputs.noise) == len(by_pipeline)
    return {
        "wrapper_nfe": f"{cached.nfe:.2f}",
        "pipeline_nfe": f"{nfe:.2f}",
        "wrapper": f"{float(psnr(by_wrapper, reference).mean()):.2f}",
        "pipeline": f"{float(psnr(by_pipeline, reference).mean()):.2f}",
    }


@cache
def _workload(model: str) -> Workload:
    made: Workload = getattr(workloads, model)()
    return made


def _scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


@cache
def _pipeline(model: str) -> Any:
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=_scheduler(),
        transformer=getattr(_workload(model).denoiser, "network"),  # noqa: B009
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _call(workload: Workload, seeds: Sequence[int]) -> dict[str, Any]:
    return {**_own(workload, seeds), **_shared(), "num_inference_steps": STEPS, "output_type": "latent"}


def _own(workload: Workload, seeds: Sequence[int]) -> dict[str, Any]:
    drawn = workload.draw(seeds)
    return {
        "prompt_embeds": drawn.args[0],
        "negative_prompt_embeds": moving_digits.null_embedding(len(seeds)),
        "latents": drawn.noise,
    }


def _shared() -> dict[str, Any]:
    return {
        "num_frames": 4 * moving_digits.FRAMES - 3,
        "height": 8 * moving_digits.LATENT_SHAPE[-2],
        "width": 8 * moving_digits.LATENT_SHAPE[-1],
        "guidance_scale": GUIDANCE,
    }


@cache
def _profiles(model: str) -> tuple[Profile, Profile]:
    """Return the profile of the wrapped denoiser and of the pipeline, from the same samples."""
    workload, drawn = _workload(model), _workload(model).draw(CALIBRATED_ON)
    batches = [CALIBRATED_ON[k : k + ROWS] for k in range(0, len(CALIBRATED_ON), ROWS)]
    folder = Path(__file__).parents[1] / "build" / "wan"
    paths = [folder / f"{model}-{which}.json" for which in ("wrapper", "pipeline")]
    if not paths[0].exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = calibrate(
            workload.denoiser,
            _scheduler(),
            CalibrationSamples(noise=drawn.noise, args=drawn.args, kwargs=drawn.kwargs, seeds=tuple(CALIBRATED_ON)),
            num_steps=STEPS,
            name=paths[0].stem,
            guidance=workload.guidance,
        )
        save_profile(made, paths[0])
    if not paths[1].exists():
        made = calibrate(
            _pipeline(model),
            prompts=[_own(workload, batch) for batch in batches],
            num_inference_steps=STEPS,
            name=paths[1].stem,
            **_shared(),
        )
        save_profile(made, paths[1])
    return load_profile(paths[0]), load_profile(paths[1])


def _known() -> set[tuple[str, str, str]]:
    if not OUT.exists():
        return set()
    with OUT.open(newline="") as file:
        return {(row["model"], row["asked"], row["budget"]) for row in csv.DictReader(file)}


if __name__ == "__main__":
    main(sys.argv[1:] or MODELS)

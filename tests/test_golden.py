"""Parity: the authors' own runs, step for step, with ordinary public settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import diffusers.hooks
import pytest
import torch
from attrs import frozen
from safetensors.torch import load_file
from torch import Tensor, nn

import cachepolicies
from cachepolicies import CachedDenoiser, Profile
from cachepolicies.policies import MagCache, SenCache, TeaCache
from cachepolicies.profiles.schema import Curve, ModelInfo, SchedulerInfo
from tiny_models import TINY

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


@frozen(eq=False)
class Record:
    """One recorded run."""

    name: str
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def load(cls, name: str) -> Record:
        return cls(name, json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors"))

    @property
    def doubled(self) -> bool:
        """Whether the batch is doubled for guidance."""
        return "guidance" in self.facts

    def model(self) -> nn.Module:
        model = getattr(diffusers, self.facts["model_class"])(**self.facts["config"])
        weights = {key.removeprefix("model."): v for key, v in self.tensors.items() if key.startswith("model.")}
        model.load_state_dict(weights)
        return model.eval().requires_grad_(False)

    def scheduler(self) -> Any:
        if self.facts.get("scheduler"):
            return getattr(diffusers, self.facts["scheduler"])()
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=self.facts["shift"])

    def levels(self, timesteps: Tensor) -> Tensor:
        """The noise levels as the model is called with them."""
        return timesteps / 1000 if "Flux" in self.facts["model_class"] else timesteps

    def call(self, denoiser: Any, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the model returns, and the guided prediction."""
        inputs: dict[str, Any] = {
            "hidden_states": torch.cat([x, x]) if self.doubled else x,
            "encoder_hidden_states": self.tensors["enc"],
            "timestep": self.levels(t).expand(2 if self.doubled else 1),
        }
        if "pool" in self.tensors:
            inputs |= {"pooled_projections": self.tensors["pool"]}
            inputs |= {"img_ids": self.tensors["img"], "txt_ids": self.tensors["txt"]}
        if "mask" in self.tensors:
            inputs |= {"encoder_attention_mask": self.tensors["mask"]}
            inputs |= {key: self.facts[key] for key in ("num_frames", "height", "width")}
        output = denoiser(**inputs, return_dict=False)[0]
        if not self.doubled:
            return output, output
        uncond, cond = output.chunk(2)
        return output, uncond + self.facts["guidance"] * (cond - uncond)

    def policy(self) -> SenCache | TeaCache | MagCache:
        """The method, as its authors run it."""
        facts = self.facts
        if facts["policy"] == "sencache":
            return SenCache(
                epsilon=facts["threshold_main"],
                epsilon_start=facts["threshold_start"],
                start_fraction=facts["switch_fraction"],
                max_reuse=facts["K"],
                protect_first=facts["first_protected"],
                protect_last=facts["last_protected"],
                interpolation="nearest",
                comparison="<",
            )
        if facts["policy"] == "teacache":
            return TeaCache(
                threshold=facts["rel_l1_thresh"],
                coefficients=facts["coefficients"],
                signal="modulated_input",
                first=1,
                last=1,
            )
        return MagCache(
            threshold=facts["threshold"],
            max_reuse=facts["K"],
            retention_ratio=facts["retention_ratio"],
            retention_rounding="half-up",
            ratios=facts["mag_ratios"],
            never=(11,),
            lookup="index",
            comparison="<=",
        )

    def profile(self) -> Profile | None:
        """SenCache's sensitivities; the authors' are L2 norms, ours are RMS."""
        table = self.facts.get("table")
        if table is None:
            return None
        scale = self.facts["scale"]
        curves = {"alpha_x": table["J_x"], "alpha_t": [value / scale for value in table["J_t"]]}
        return Profile(
            name=self.name,
            model=ModelInfo(self.facts["model_class"]),
            prediction_type="v" if self.facts.get("scheduler") else "velocity",
            latent_shape=tuple(self.tensors["final"].shape[1:]),
            scheduler=SchedulerInfo("recorded", "vp" if self.facts.get("scheduler") else "flow"),
            timesteps=table["timesteps"],
            curves={key: Curve(table["timesteps"], [[v] for v in values]) for key, values in curves.items()},
        )


@contextmanager
def wrapped(record: Record, model: nn.Module, levels: Tensor) -> Iterator[tuple[Any, Any]]:
    denoiser = CachedDenoiser(
        model,
        record.policy(),
        profile=record.profile(),
        site="blocks",
        per_sample=False,
        cfg="batched" if record.doubled else "separate",
    )
    with denoiser.run(timesteps=levels):
        yield denoiser, denoiser


@contextmanager
def in_place(record: Record, model: nn.Module, levels: Tensor) -> Iterator[tuple[Any, Any]]:
    with (
        cachepolicies.enable(model, record.policy(), profile=record.profile(), per_sample=False) as enabled,
        enabled.run(timesteps=levels),
    ):
        yield model, enabled


@pytest.mark.parametrize("way_in", [wrapped, in_place])
@pytest.mark.parametrize("name", NAMES)
def test_the_authors_run_is_reproduced_step_for_step(name, way_in):
    record = Record.load(name)
    scheduler = record.scheduler()
    scheduler.set_timesteps(record.facts["steps"])
    torch.testing.assert_close(scheduler.timesteps.double(), record.tensors["timesteps"].double())
    x = record.tensors["latents"][0]
    with torch.no_grad(), way_in(record, record.model(), record.levels(scheduler.timesteps)) as (denoiser, traced):
        for k, t in enumerate(scheduler.timesteps):
            torch.testing.assert_close(x, record.tensors["latents"][k], atol=1e-5, rtol=1e-5)
            output, guided = record.call(denoiser, x, t)
            torch.testing.assert_close(output, record.tensors["outputs"][k], atol=1e-5, rtol=1e-5)
            x = scheduler.step(guided, t, x, return_dict=False)[0]
        torch.testing.assert_close(x, record.tensors["final"], atol=1e-5, rtol=1e-5)
        assert [call.evaluated[0] for call in traced.trace.records] == record.facts["computed"]


def test_the_accumulated_distance_of_teacache_is_the_authors():
    record = Record.load("teacache_ltx_a")
    scheduler = record.scheduler()
    scheduler.set_timesteps(record.facts["steps"])
    x = record.tensors["latents"][0]
    with torch.no_grad(), wrapped(record, record.model(), scheduler.timesteps) as (denoiser, _):
        for t in scheduler.timesteps:
            x = scheduler.step(record.call(denoiser, x, t)[1], t, x, return_dict=False)[0]
    recorded = record.facts["accumulated"]
    for call, expected in zip(denoiser.trace.records, recorded, strict=True):
        if not call.evaluated[0]:
            assert call.score is not None
            assert call.score[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("key", ["FluxTransformer2DModel", "WanTransformer3DModel"])
@pytest.mark.parametrize(("threshold", "max_reuse"), [(0.06, 3), (0.24, 5), (0.6, 2)])
def test_magcache_decides_as_diffusers_own(key, threshold, max_reuse):
    config: Any = getattr(diffusers.hooks, "MagCacheConfig", None)
    if config is None:
        pytest.skip("this diffusers has no MagCache")
    steps, tiny = 28, TINY[key]
    ratios = json.loads((GOLDEN / "magcache_flux_a.json").read_text())["mag_ratios"]
    levels = [tiny.t_start + (tiny.t_end - tiny.t_start) * k / (steps - 1) for k in range(steps)]
    calls = [tiny.inputs(1, t=level) for level in levels]

    theirs: Any = tiny.build()
    theirs.enable_cache(
        config(
            threshold=threshold,
            max_skip_steps=max_reuse,
            retention_ratio=0.2,
            num_inference_steps=steps,
            mag_ratios=list(ratios),
        )
    )
    ran: list[int] = []
    middle = next(m for name, m in theirs.named_modules() if name.endswith("blocks.1"))
    # inside of diffusers' own hook: the attention of a block runs only if the block does
    attention = next(m for name, m in middle.named_modules() if name.startswith("attn"))
    step = 0
    attention.register_forward_pre_hook(lambda *_: ran.append(step))
    outputs = []
    with torch.no_grad():
        for step, inputs in enumerate(calls):  # noqa: B007  # the hook reads it
            outputs.append(theirs(**inputs, return_dict=False)[0])
    computed = [k in ran for k in range(steps)]

    policy = MagCache(
        threshold=threshold,
        max_reuse=max_reuse,
        retention_ratio=0.2,
        retention_rounding="half-up",
        ratios=ratios,
        never=(),
        lookup="index",
        comparison="<=",
    )
    mine = tiny.build()
    with torch.no_grad(), cachepolicies.enable(mine, policy) as enabled, enabled.run(timesteps=levels):
        for inputs, expected in zip(calls, outputs, strict=True):
            torch.testing.assert_close(mine(**inputs, return_dict=False)[0], expected, atol=1e-5, rtol=1e-5)
        assert [call.evaluated[0] for call in enabled.trace.records] == computed
    assert not all(computed)

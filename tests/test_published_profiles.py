"""The shipped profiles of published numbers: complete, unchanged, and usable by name."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cachepolicies import CachePolicy, Limits, Setup
from cachepolicies.assembly.assemble import as_policy
from cachepolicies.base.errors import NeedsError, ProfileError
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies import MagCache, SenCache, TeaCache
from cachepolicies.policies.limits import LimitedPolicy
from cachepolicies.policies.teacache import AccumulatedChange
from cachepolicies.profiles import check_profile, load_profile, save_profile, shipped_profiles
from cachepolicies.substitutes import Hold, as_substitute
from cachepolicies.testing import registered
from cachepolicies_classics import plugin as classics
from cachepolicies_drafts import plugin as drafts

PROFILES = {name: load_profile(name) for name in shipped_profiles()}
PUBLISHED = {name: profile for name, profile in PROFILES.items() if profile.origin == "published"}
TEACACHE = [name for name, profile in PUBLISHED.items() if "teacache" in profile.settings]
MAGCACHE = [name for name, profile in PUBLISHED.items() if "magcache" in profile.settings]
SENCACHE = [name for name, profile in PUBLISHED.items() if "sencache" in profile.settings]
SCRIPT = Path(__file__).parents[1] / "training" / "published_profiles.py"


def sha256(numbers):
    return hashlib.sha256(",".join(repr(float(number)) for number in numbers).encode()).hexdigest()


def printed_values(profile, curve):
    """The list as its source prints it: without what stands for the first steps, streams in turn."""
    columns = [
        profile.tables.get(f"magnitude_ratio.{stream}", profile.tables.get("magnitude_ratio"))[curve["first_row"] :, 0]
        for stream in curve["streams"]
    ]
    return np.stack(columns, axis=1).reshape(-1)


def test_everything_that_was_published_is_here():
    assert len(TEACACHE) == 29
    assert sum(len(profile.polynomials) for profile in PUBLISHED.values()) == 28
    curves = [curve for name in MAGCACHE for curve in PUBLISHED[name].source["magcache"]["curves"]]
    assert len(curves) == 31
    assert len({curve["id"] for curve in curves}) == 31
    assert sorted(SENCACHE) == ["cogvideox1.5-5b", "ltx-video-0.9.1", "wan2.1-t2v-1.3b"]
    without_tables = {"dit-xl-2-512", "pixart-alpha", "stable-diffusion-1.5"}
    assert PUBLISHED.keys() == {*TEACACHE, *MAGCACHE, *without_tables}


def test_what_is_recommended_can_be_chosen():
    """Of every method, by the names of its package; with the substitute that is published with it."""
    tried = set()
    with registered(classics, "cachepolicies-classics"), registered(drafts, "cachepolicies-drafts"):
        for profile in PUBLISHED.values():
            for row in profile.recommended:
                known = dict(profile.settings.get(row.policy, {}))
                made = as_policy(row.policy, {**known, **row.settings})
                assert made.name == row.policy
                _, written, spec = (row.note or "").partition("substitute: ")
                if written:
                    assert as_substitute(spec).name == spec.partition(":")[0]
                tried.add(row.policy)
    methods = {"pab", "adacache", "fastercache", "cfg-cache", "speca", "dicache", "fora", "delta-dit", "deepcache"}
    assert tried == {"teacache", "magcache", "sencache", *methods}


@pytest.mark.parametrize("name", TEACACHE)
def test_coefficients_are_those_of_the_source(name):
    profile = PUBLISHED[name]
    digests = [sha256(polynomial.coefficients) for polynomial in profile.polynomials.values()]
    expected = profile.source["teacache"].get("coefficients_sha256")
    assert digests == ([] if expected is None else [expected])
    assert all(polynomial.degree == 4 for polynomial in profile.polynomials.values())


@pytest.mark.parametrize("name", MAGCACHE)
def test_ratios_are_those_of_the_source(name):
    profile = PUBLISHED[name]
    for curve in profile.source["magcache"]["curves"]:
        assert sha256(printed_values(profile, curve)) == curve["values_sha256"]
    for table in profile.magnitude_ratios.values():
        assert len(table) == profile.num_steps or any("steps, the source" in text for text in profile.irregularities)


def rule_and_limits(policy: CachePolicy) -> tuple[AccumulatedChange, Limits]:
    """Return the two parts of what `TeaCache` resolves to."""
    assert isinstance(policy, LimitedPolicy)
    assert isinstance(policy.policy, AccumulatedChange)
    return policy.policy, policy.limits


@pytest.mark.parametrize("name", TEACACHE)
def test_teacache_resolves_by_name(name):
    setup = Setup(PUBLISHED[name])
    resolved = TeaCache().resolve(setup)
    rule, limits = rule_and_limits(resolved)
    settings = PUBLISHED[name].settings["teacache"]
    assert (rule.threshold, rule.signal, rule.comparison) == (settings["threshold"], settings["signal"], "<")
    assert limits == Limits(protect_first=settings["first"], protect_last=settings["last"])
    assert len(rule.coefficients) == (2 if name == "wan2.1-comfyui" else 5)
    assert resolved.needs.signals == {settings["signal"]}
    assert resolved.needs.run_length
    assert rule_and_limits(TeaCache(threshold=0.05).resolve(setup))[0].threshold == 0.05


@pytest.mark.parametrize("name", MAGCACHE)
def test_magcache_resolves_by_name_and_reuses(name):
    profile = PUBLISHED[name]
    policy = MagCache().resolve(Setup(profile))
    assert policy.needs.run_length
    steps = profile.num_steps
    timesteps = tuple(1000.0 * (1 - k / steps) for k in range(steps))
    info = RunInfo(1000.0, timesteps, Layout(1), (1, 2), torch.float32, torch.device("cpu"), profile)
    for branch in ("cond", "uncond"):
        state, reused = policy.start(info), 0
        for k, t in enumerate(timesteps):
            step = Step(torch.zeros(1, 2), t, branch, k, info, lambda tensors: [t.tolist() for t in tensors])
            decision = policy.decide(step, state)
            state = policy.observe(step, decision, step.x, state)
            reused += decision.reuse[0]
        assert 0 < reused < steps


@pytest.mark.parametrize("name", SENCACHE)
def test_sencache_has_its_thresholds_but_no_sensitivities(name):
    policy = SenCache(**PUBLISHED[name].settings["sencache"])
    assert policy.comparison == "<"
    assert policy.interpolation == "nearest"
    with pytest.raises(NeedsError, match="'alpha_x', 'alpha_t'"):
        policy.resolve(Setup(PUBLISHED[name], Hold()))


def test_the_settings_reproduce_the_scripts():
    assert PUBLISHED["flux.1-dev"].settings["magcache"] == {
        "threshold": 0.24,
        "max_reuse": 5,
        "retention_ratio": 0.1,
        "never": [11],
        "lookup": "index",
        "comparison": "<=",
        "retention_rounding": "half-up",
    }
    assert "never" not in PUBLISHED["flux.1-dev-diffusers"].settings["magcache"]
    assert PUBLISHED["wan2.1-t2v-1.3b"].settings["magcache"]["comparison"] == "<"
    assert PUBLISHED["omnigen2-edit"].settings["magcache"]["retention_rounding"] == "ceil"
    assert (PUBLISHED["wan2.1-t2v-14b"].settings["teacache"]["signal"]) == "timestep_embedding"
    assert (PUBLISHED["wan2.1-t2v-14b-ret"].settings["teacache"]["signal"]) == "timestep_projection"
    assert PUBLISHED["wan2.1-t2v-14b-ret"].settings["teacache"]["first"] == 5
    assert PUBLISHED["framepack-i2v"].settings["magcache"]["never"] == [
        k for k, ratio in enumerate(PUBLISHED["framepack-i2v"].tables["magnitude_ratio"][:, 0]) if abs(1 - ratio) > 0.06
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open-sora-1.2", "to the power 0.5"),
        ("open-sora-1.2", "signed, no absolute value"),
        ("wan2.1-t2v-1.3b-evaluation", "to the power 0.5"),
        ("wan2.1-t2v-1.3b-evaluation", "no entry for the first 5 steps"),
        ("wan2.1-vace-14b", "borrowed"),
        ("wan2.1-i2v-14b-480p-maxdiffusion", "the list has 40 steps, the source samples with 50"),
        ("wan2.2-t2v-a14b", "cannot express it"),
        ("framepack-f1", "its own ratio| <= 0.06"),
        ("flux.1-kontext-dev", "no outlier at that index"),
        ("omnigen2-t2i", "no setting expresses where the counter"),
        ("qwen-image", "cond and uncond have the same ratios"),
        ("flux.1-dev-diffusers", "the ratios are those of flux.1-dev"),
        ("tangoflux", "identical to flux1-dev"),
        ("lumina-image-2.0-v2", "constant term is negative"),
        ("wan2.1-comfyui", "no polynomial"),
    ],
)
def test_what_is_odd_is_said(name, said):
    assert any(said in text for text in PUBLISHED[name].irregularities)


def test_stated_speed_ups_are_carried_over():
    rows = {
        (row.policy, row.settings["threshold"]): row
        for row in PUBLISHED["flux.1-dev"].recommended
        if row.policy in ("magcache", "teacache")
    }  # fmt: skip
    assert rows["magcache", 0.24].speedup_stated == 2.8
    assert rows["magcache", 0.24].speedup_from_latency == 2.824
    assert rows["teacache", 0.25].hardware == "1x A800"
    assert all(row.source for profile in PUBLISHED.values() for row in profile.recommended)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_profile_is_one_readable_file(name, tmp_path):
    path = shipped_profiles()[name]
    assert not path.with_suffix(".safetensors").exists()
    assert PUBLISHED[name].name == name == path.stem
    assert save_profile(PUBLISHED[name], tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_classes_are_those_of_diffusers():
    import diffusers

    own = {"STDiT3", "LatteT2V", "OmniGen2Transformer2DModel"}
    for profile in PUBLISHED.values():
        name = profile.model.class_name
        assert hasattr(diffusers, name) != (name in own)


def test_another_model_class_is_refused_and_what_is_unknown_is_noted():
    profile = PUBLISHED["flux.1-dev"]
    with pytest.raises(ProfileError, match="for the model class 'FluxTransformer2DModel', this model is 'Linear'"):
        check_profile(profile, model=nn.Linear(1, 1))
    given: dict[str, Any] = {"latent_shape": (16, 8, 8), "num_steps": 28, "first_t": 1.0, "dtype": torch.bfloat16}
    assert check_profile(profile, **given) == (
        "profile 'flux.1-dev' was published without its latent shape, timesteps; whether that fits cannot be checked",
    )
    assert any("28 steps, used with 20" in note for note in check_profile(profile, num_steps=20))
    assert "number of steps" in check_profile(PUBLISHED["cosmos-1.0-text2world"], num_steps=20)[0]


def test_a_number_that_differs_from_its_checksum_is_not_written(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("published_profiles", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    entry = {
        "id": "net",
        "family": "FLUX.1",
        "coefficients": [1.0, 2.0],
        "coefficients_sha256": sha256([1.0, 2.5]),
        "signal": {"kind": "modulated_input", "code_name": "m", "description": "d"},
    }
    teacache = {"paper": "p", "entries": [entry], "entries_without_polynomial": []}
    files = {
        "teacache": teacache | {"copies_in_other_repositories": {"items": []}},
        "magcache": {"paper": "p", "curves": []},
        "sencache": {"paper": "p", "models": []},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="net: sha256 of the numbers is"):
        script.profiles_from(tmp_path)

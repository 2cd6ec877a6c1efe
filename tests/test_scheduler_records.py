"""Schedulers made again from what a profile records of them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from cachepolicies.base.errors import PluginError, SettingsError
from cachepolicies.profiles import SchedulerInfo, read_profile, save_profile, shipped_profiles
from cachepolicies.schedulers import resolve
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.ddpm import DDPM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import SUPPORTED, DiffusersScheduler, from_class_name
from cachepolicies.schedulers.karras_euler import KarrasEuler
from cachepolicies.schedulers.karras_heun import KarrasHeun
from cachepolicies.schedulers.resolve import scheduler_of

REBUILT = [
    FlowEuler(shift=3.0),
    DDIM(eta=0.3, spacing="trailing"),
    DDPM(beta_schedule="cosine"),
    KarrasEuler(sigma_max=40.0),
    KarrasHeun(rho=5.0),
    from_class_name("UniPCMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    from_class_name("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, mu=0.7),
    from_class_name("DPMSolverMultistepScheduler", use_karras_sigmas=True),
    *(from_class_name(name) for name in SUPPORTED),
]


@pytest.mark.parametrize("scheduler", REBUILT, ids=lambda one: one.name)
def test_a_scheduler_is_rebuilt_from_its_record(scheduler, tmp_path):
    info = SchedulerInfo(scheduler.name, scheduler.family, scheduler.config)
    read = read_profile(
        save_profile(attrs.evolve(read_profile(shipped_profiles()["video-dit"]), scheduler=info), tmp_path / "p.json")
    ).scheduler
    assert read is not None
    again = scheduler_of(read)
    assert again is not None
    assert type(again) is type(scheduler)
    assert again.name == scheduler.name
    assert again.config == scheduler.config
    for steps in (8, 50):
        assert again.timesteps(steps) == scheduler.timesteps(steps)


def test_every_registered_scheduler_is_among_them():
    from cachepolicies.registry.load import schedulers

    assert {scheduler.name for scheduler in REBUILT} >= {
        entry.name for entry in schedulers().entries() if entry.distribution == "cachepolicies"
    }


def test_the_shipped_profiles_have_a_scheduler_to_rebuild():
    for path in shipped_profiles().values():
        profile = read_profile(path)
        if profile.scheduler is not None:
            again = scheduler_of(profile.scheduler)
            assert again is not None
            assert again.timesteps(profile.num_steps) == profile.timesteps


def test_a_shift_that_was_set_later_is_the_known_exception():
    import diffusers

    instance = diffusers.FlowMatchEulerDiscreteScheduler()
    instance.set_shift(3.0)
    scheduler = DiffusersScheduler(instance)
    again = scheduler_of(SchedulerInfo(scheduler.name, scheduler.family, scheduler.config))
    assert again is not None
    assert again.timesteps(10)[:-1] == pytest.approx(scheduler.timesteps(10)[:-1], rel=0.02)


def test_what_cannot_be_rebuilt(monkeypatch):
    assert scheduler_of(SchedulerInfo("of-my-own", "flow", {"a": 1})) is None
    with pytest.raises(SettingsError, match=r"profile's scheduler 'ddim' cannot be rebuilt .*unknown setting 'etaa'"):
        scheduler_of(SchedulerInfo("ddim", "vp", {"etaa": 1}))

    class Broken:
        def __contains__(self, name: str) -> bool:
            return True

        def create(self, name: str, **config: Any) -> Any:
            return object()

    monkeypatch.setattr("cachepolicies.registry.load.schedulers", Broken)
    with pytest.raises(PluginError, match="made a object, not a cachepolicies Scheduler"):
        resolve.scheduler_of(SchedulerInfo("x", "vp"))

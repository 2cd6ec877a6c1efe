"""Shared settings and fixtures; what tests import stands in modules of its own."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from hypothesis import settings

from cachepolicies import CalibrationSamples, Profile, calibrate
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE, mixture

# What a test learns is for no other test and for nobody's cache folder.
os.environ["CACHEPOLICIES_HOME"] = tempfile.mkdtemp(prefix="cachepolicies-tests-")

# Most models here are tiny: a second thread gains nothing on them, and waits for the first where the machine is shared.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same in processes that tests start

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def mixture_profile() -> Profile:
    """What calibration measures for `mixture`."""
    samples = CalibrationSamples.from_seeds(range(8), SHAPE)
    return calibrate(mixture(), FlowEuler(), samples, num_steps=50, progress=False, model_class="Counted")

"""Projected distances are those of the vectors, without bias and within three in a hundred."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies.base.projection import WIDTH, Projection
from cachepolicies.learning import tables_of
from cachepolicies.reference import workloads


def test_short_vectors_are_kept_as_they_are():
    x = torch.randn(3, 5, 7)
    kept = Projection(35)(x)
    assert torch.equal(kept, x.reshape(3, -1))
    x.zero_()
    assert kept.abs().max() > 0  # a copy


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]))
def test_it_is_linear(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, 5000, generator=generator) for _ in range(2))
    project = Projection(5000, width=512)
    assert torch.allclose(project(a) - 2 * project(b), project(a - 2 * b), atol=1e-3)


def test_squared_lengths_are_unbiased():
    """The mean over many vectors is off by a hundredth of one vector's own spread."""
    project = Projection(20_000, width=256)
    x = torch.randn(400, 20_000, generator=torch.Generator().manual_seed(0))
    ratio = project(x).double().square().sum(dim=1) / x.double().square().sum(dim=1)
    assert abs(ratio.mean() - 1.0) < 4 * (2 / 256) ** 0.5 / 400**0.5
    assert abs(ratio.std() - (2 / 256) ** 0.5) < 0.3 * (2 / 256) ** 0.5


def test_distances_along_a_trained_run_are_within_three_hundredths():
    """All pairs of the outputs of one run of the video DiT, mixed to many times their size at random."""
    workload = workloads.sound_transformer()
    drawn = workload.draw([0])
    run, outputs = workload.scheduler.begin(20), []
    x = workload.scheduler.initial(drawn.noise, 20)
    with torch.no_grad():
        while not run.finished:
            x_in, t = run.model_input(x)
            outputs.append(workload.denoiser(x_in, t, *drawn.args))
            x = run.advance(outputs[-1], x)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(outputs[0].numel(), 8 * WIDTH, generator=generator) / outputs[0].numel() ** 0.5
    large = [y.reshape(1, -1) @ mixing for y in outputs]  # 131 072 entries each, smooth along the run
    project = Projection(large[0].numel())
    exact = tables_of([large], 1, large[0].numel())
    found = tables_of([[project(y) for y in large]], 1, large[0].numel())
    apart = exact > 0
    assert abs(found[apart] / exact[apart] - 1.0).max() < 0.03


def test_every_process_projects_alike():
    x = torch.arange(40_000, dtype=torch.float32).sin().reshape(1, -1)
    assert torch.equal(Projection(40_000)(x), Projection(40_000)(x))
    assert Projection(40_000)(x)[0, :4].tolist() == Projection(40_000)(x.double())[0, :4].tolist()

"""What a comparison says of itself: which times it believes, its verdict, the lines of its chart, its report."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies.comparison._progress import progress_bar
from cachepolicies.comparison.timing import Doubt, Stopwatch, WallTime, doubt_of, drift
from cachepolicies.reference import demo
from made_comparisons import comparison, result


@given(times=st.lists(st.floats(1.0, 1.05), min_size=1, max_size=5), waited=st.floats(0, 0.04))
def test_times_of_an_idle_machine_are_believed(times, waited):
    assert doubt_of([WallTime(each, waited) for each in times]) is None


@given(share=st.floats(0.06, 0.99), repeats=st.integers(1, 5))
def test_a_time_that_was_mostly_waited_for_is_not(share, repeats):
    assert doubt_of([WallTime(10.0, share)] * repeats) is Doubt.BUSY


def test_one_disturbed_repeat_of_three_does_not_matter():
    assert doubt_of([WallTime(10.0, 0.0), WallTime(17.0, 0.5), WallTime(10.1, 0.01)]) is None
    assert doubt_of([WallTime(10.0, 0.0), WallTime(17.0, 0.5), WallTime(17.1, 0.4)]) is Doubt.BUSY


def test_repeats_that_lie_apart_are_not_believed():
    assert drift([10.0]) == 0
    assert drift([10.0, 12.0]) == pytest.approx(2 / 11)
    assert doubt_of([WallTime(10.0), WallTime(12.0)]) is Doubt.DRIFT


def test_a_stopwatch_adds_up_its_laps():
    watch = Stopwatch()
    assert watch.read() == 0
    laps = []
    for _ in range(3):
        watch.start()
        sum(range(20_000))
        watch.stop()
        laps.append(watch.read())
    assert 0 < laps[0] < laps[1] < laps[2]
    assert all(math.isnan(lap.waited) or 0 <= lap.waited <= 1 for lap in laps)


def test_without_a_count_of_the_threads_the_load_stands_in(monkeypatch, tmp_path):
    monkeypatch.setattr("cachepolicies.comparison.timing._THREADS", tmp_path / "none")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for load, waited in ((1.0, 0.0), (2.0, 0.0), (4.0, 0.5)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0), raising=False)
        watch = Stopwatch()
        watch.start()
        watch.stop()
        assert watch.read().waited == waited

    def unknown():
        raise OSError

    monkeypatch.setattr("os.getloadavg", unknown, raising=False)
    assert math.isnan(watch.read().waited)


def slowed(**changed):
    """A row with fewer evaluations that took longer, because the machine was busy."""
    return comparison(result("a", nfe=20, psnr=30.0, seconds=(WallTime(30.0, 0.4),)), **changed)


def test_a_slow_down_on_a_busy_machine_is_marked():
    from rich.console import Console

    found = slowed()
    assert found.doubt(found.results[1]) is Doubt.BUSY
    assert found.doubt(found.uncached) is None
    row = found.rows()[1]
    assert (row["time_reliable"], row["waited"]) == (False, 0.4)
    assert found.to_dict()["rows"][1]["time_reliable"] is False
    console = Console(width=160)
    with console.capture() as capture:
        console.print(found.table())
    assert "0.67x †" in capture.get()
    assert "† machine was busy: time not reliable" in capture.get()


def test_every_row_is_doubted_where_the_uncached_one_is():
    reference = result("uncached", "uncached", seconds=(20.0, 30.0))
    found = comparison(result("a", nfe=20, psnr=30.0))
    assert found.doubts() == ()
    apart = comparison(result("a", nfe=20, psnr=30.0), results=(reference, found.results[1]))
    assert [apart.doubt(each) for each in apart.results] == [Doubt.DRIFT] * 2
    assert apart.doubts() == (Doubt.DRIFT,)


def against_plain(psnr, plain, nfe=21.8, **changed):
    """A policy and the plain steps that were matched to it."""
    own = {"seconds": (10.0,)} | changed
    return comparison(
        result("rule", nfe=nfe, psnr=psnr, **own),
        result("fewer steps (22)", "fewer steps", nfe=22, psnr=plain, matches="rule"),
    )


def test_a_win_is_said():
    assert against_plain(63.3, 31.9).verdict() == (
        "rule evaluates 21.8 of 50 steps, is 2.0 times as fast and is at 63.3 dB, 31.4 dB nearer to the uncached "
        "samples than 22 plain steps."
    )


def test_a_loss_is_said():
    assert (
        against_plain(28.0, 31.9)
        .verdict()
        .endswith(
            "is at 28.0 dB, 3.9 dB farther from the uncached samples than 22 plain steps: it is worse than simply "
            "taking fewer steps."
        )
    )


@pytest.mark.parametrize(
    ("own", "plain"),
    [(31.9, 31.9), (31.95, 31.9), ((30.0, 35.0, 31.0, 33.0), (33.0, 31.0, 33.5, 31.0)), (math.inf, math.inf)],
)
def test_what_the_samples_scatter_by_is_a_tie(own, plain):
    assert (
        "no nearer to the uncached samples than 22 plain steps: nothing is gained"
        in against_plain(own, plain).verdict()
    )


def test_times_are_in_the_verdict_only_if_they_are_believed():
    assert "fast" not in against_plain(63.3, 31.9, seconds=(WallTime(30.0, 0.4),)).verdict()
    assert "yet takes 1.5 times as long and" in against_plain(63.3, 31.9, seconds=(WallTime(30.0, 0.0),)).verdict()


def test_the_verdict_is_about_the_policy_that_is_farthest_ahead():
    rows = [
        result("careful", nfe=30, psnr=70.0),
        result("fewer steps (30)", "fewer steps", nfe=30, psnr=40.0, matches="careful"),
        result("bold", nfe=15, psnr=55.0),
        result("fewer steps (15)", "fewer steps", nfe=15, psnr=20.0, matches="bold"),
        result("planned", nfe=15, psnr=60.0),
        result("alone", nfe=10, psnr=90.0),
    ]
    assert comparison(*rows).verdict().startswith("planned evaluates 15 of 50")  # against what does as much work
    even = result("uniform (15)", "uniform", nfe=15, psnr=57.0, matches="bold")
    assert comparison(*rows[:4], even).verdict().endswith("; evenly spaced reuse does better, at 57.0 dB.")


def test_other_verdicts():
    assert comparison(result("u", "uniform", nfe=10, psnr=30.0)).verdict().startswith("No policy was compared")
    assert comparison(result("a")).verdict().startswith("a evaluated every step: nothing was reused")
    assert (
        comparison(result("a", nfe=20, psnr=30.0)).verdict().endswith("30.0 dB; it was not compared with fewer steps.")
    )
    unknown = comparison(result("a", nfe=22, psnr=math.nan), result("f", "fewer steps", nfe=22, psnr=9.0, matches="a"))
    assert unknown.verdict().endswith("it was not compared with fewer steps.")
    equal = against_plain(math.inf, 30.0).verdict()
    assert equal.endswith("and gives equal samples, which 22 plain steps do not.")


def told(terminal, ticks):
    """What is printed of one way of sampling in ten calls, one at each tick of the clock."""
    from rich.console import Console

    out = io.StringIO()
    clock = iter([0.0, *ticks])
    with progress_bar(True, Console(file=out, force_terminal=terminal, width=80), clock=lambda: next(clock)) as report:
        for done in range(1, len(ticks) + 1):
            report("[b]rule[/b]", done, len(ticks))
    return out.getvalue()


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal():
    assert told(False, [2.0 * tick for tick in range(1, 9)]).splitlines() == [
        "[   6 s] [b]rule[/b]: 3 of 8 calls",
        "[  12 s] [b]rule[/b]: 6 of 8 calls",
        "[  16 s] [b]rule[/b]: 8 of 8 calls",
    ]
    assert told(False, [0.1, 0.2]).splitlines() == ["[   0 s] [b]rule[/b]: 2 of 2 calls"]


def test_progress_is_a_bar_on_a_terminal():
    assert "━" in told(True, [1.0, 2.0])


def test_the_demonstration_says_how_long_it_takes():
    rows = demo.candidates()
    once = demo.expected_evaluations(rows, 50, samples=32, repeats=1)
    assert once < demo.expected_evaluations(rows, 50, samples=32, repeats=2)
    assert once < demo.expected_evaluations(rows, 50, samples=33, repeats=1)
    assert demo.forecast(0.25, 960).startswith("this takes about 4 minutes: 960 evaluations")
    assert demo.forecast(0.001, 960).startswith("this takes about 2 seconds")

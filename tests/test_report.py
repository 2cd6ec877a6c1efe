"""What a comparison says of itself: which times it believes, its verdict, the lines of its chart, its report."""

from __future__ import annotations

import base64
import importlib.machinery
import io
import math
import re
import sys
import types

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cachepolicies.comparison import Candidate
from cachepolicies.comparison._films import films
from cachepolicies.comparison._progress import progress_bar
from cachepolicies.comparison._repeat import command, recipe_of
from cachepolicies.comparison._run_settings import Method, Recipe, RunSettings
from cachepolicies.comparison._svg import INK, PAPER, as_svg
from cachepolicies.comparison.figures import NARROW, WIDE, lines, quality
from cachepolicies.comparison.report import rendered_report
from cachepolicies.comparison.timing import Doubt, Stopwatch, WallTime, doubt_of, drift
from cachepolicies.policies import Uniform
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


def rows_of_two_methods():
    return [
        result("bold", nfe=10, psnr=30.0, trace=("rule", "hold")),
        result("fewer steps (10)", "fewer steps", nfe=10, psnr=20.0, matches="bold"),
        result("uniform (10)", "uniform", nfe=10, psnr=25.0, matches="bold", trace=("uniform", "hold")),
        result("planned", nfe=20, psnr=50.0, trace=("schedule", "linear")),
        result("careful", nfe=30, psnr=45.0, trace=("rule", "hold")),
        result("fewer steps (30)", "fewer steps", nfe=30, psnr=31.0, matches="careful"),
        result("fewer steps (30), again", "fewer steps", nfe=30, psnr=31.0, matches="planned"),
        result("uniform, asked for", nfe=25, psnr=33.0, trace=("uniform", "hold")),
        result("equal", nfe=40, psnr=math.inf, trace=("rule", "hold")),
    ]


def test_a_line_for_each_method_by_work():
    found = lines(comparison(*rows_of_two_methods()))
    assert [(line.label, line.kind) for line in found] == [
        ("rule", "policy"),
        ("schedule, linear", "policy"),
        ("uniform", "uniform"),
        ("fewer steps", "fewer steps"),
    ]
    drawn = {line.label: [(round(work), psnr) for work, psnr, _ in line.points] for line in found}
    assert drawn["rule"] == [(10, 30.0), (30, 45.0)]
    assert drawn["fewer steps"] == [(10, 20.0), (30, 31.0)]
    assert drawn["uniform"] == [(10, 25.0), (25, 33.0)]


def test_a_line_does_not_go_up_and_down_at_one_work():
    others = [result(f"r{psnr}", nfe=10.2, psnr=psnr) for psnr in (28.0, 36.0)]
    [line] = [each for each in lines(comparison(*rows_of_two_methods(), *others)) if each.label == "rule"]
    assert len(line.points) == 4
    assert [(round(work), psnr) for work, psnr in line.joined] == [(10, 36.0), (30, 45.0)]


def test_the_chart_has_these_lines_and_its_legend_beside_the_data():
    found = comparison(*rows_of_two_methods())
    for width in (WIDE, NARROW):
        figure = quality(found, width)
        figure.draw_without_rendering()
        [axes], [legend] = figure.axes, figure.legends
        named = [line.label for line in lines(found)]
        assert [text.get_text() for text in legend.get_texts()] == named
        assert [line.get_label() for line in axes.lines] == named
        assert not axes.get_window_extent().overlaps(legend.get_window_extent())
        low, high = axes.get_xlim()
        assert high - low >= 0.3 * found.uncached.calls


def test_an_empty_chart_can_be_drawn():
    assert quality(comparison(result("equal", nfe=40, psnr=math.inf))).axes


def test_site_and_substitute_part_methods():
    methods = {"a": Method("rule", "linear:time=path", "blocks"), "b": Method("rule")}
    settings = RunSettings({"steps": "50", "scheduler": "s"}, methods)
    found = comparison(result("a", nfe=10, psnr=30.0), result("b", nfe=20, psnr=40.0), settings=settings)
    assert [row["method"] for row in found.rows()[1:]] == ["rule, linear:time=path at blocks", "rule"]
    assert dict(found.settings) == {"steps": "50", "scheduler": "s"}


def decoded(data):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_videos_are_sheets_of_frames_with_their_difference():
    found = comparison(result("rule", nfe=10, psnr=30.0, frames=3), result("other", nfe=10, psnr=30.0, frames=3))
    [first, *others] = films(found)
    assert [film.seed for film in (first, *others)] == [0, 1, 2]
    reference, rule, _ = first.showings
    assert (reference.difference, reference.distance, rule.distance) == (None, "", "30.0 dB")
    assert (rule.cached.count, rule.cached.width, rule.cached.height) == (3, 12, 12)
    sheet = decoded(rule.cached.data)
    assert sheet.size == (36, 12)
    frame = found.results[1].pictures[0, 2]
    assert np.asarray(sheet)[:, 24:] == pytest.approx(frame.numpy() * 255, abs=0.51)
    assert rule.difference is not None
    assert decoded(rule.difference.data).size == (36, 12)
    names = [
        sheet.name
        for film in films(found)
        for each in film.showings
        for sheet in (each.cached, each.difference)
        if sheet
    ]
    assert len(set(names)) == len(names)


def test_large_and_long_videos_are_made_smaller():
    large = result("rule", nfe=10, psnr=30.0, samples=1, frames=40)
    large = attrs.evolve(large, pictures=torch.rand(1, 40, 100, 400))
    reference = attrs.evolve(result("uncached", "uncached", samples=1), pictures=torch.rand(1, 40, 100, 400))
    [film] = films(comparison(large, results=(reference, large)))
    assert (film.showings[1].cached.count, decoded(film.showings[1].cached.data).size) == (24, (24 * 160, 40))


@pytest.mark.parametrize("frames", [1, 3])
def test_the_report_loads_nothing_and_begins_with_the_verdict(frames):
    rows = [result("rule", nfe=22, psnr=40.0, frames=frames, seconds=(WallTime(30.0, 0.4),))]
    rows.append(result("fewer steps (22)", "fewer steps", nfe=22, psnr=30.0, matches="rule", frames=frames))
    found = comparison(*rows, failures={"broken": "ValueError: no"})
    html = rendered_report(found)
    assert not re.search(r"https?:|url\((?!data:|#)|<script|<link|@import", html)
    body = html[html.index("<body>") :]
    said = body.index(found.verdict())
    assert body.index("</h1>") < said < min(body.index(part) for part in ("<table>", "<svg", "<section>"))
    assert "prefers-color-scheme: dark" in html
    assert ("@keyframes play" in html) == (frames > 1)
    assert html.count('class="film ') == (0 if frames == 1 else 3 * 3 * 2)
    assert html.count('class="row"') == (5 if frames == 1 else 0)
    assert "0.67 times" not in html
    assert "machine was busy: time not reliable" in html
    assert "0.67x †" in html
    assert "broken failed and is left out: ValueError: no" in html


def test_figures_take_their_colours_from_the_page():
    svg = as_svg(quality(comparison(*rows_of_two_methods())), "q")
    assert svg.startswith("<svg")
    assert "var(--ink)" in svg
    assert not re.search(f"{INK}|{PAPER}|#000000|xmlns|<metadata", svg)


def test_a_comparison_says_how_it_is_repeated():
    from cachepolicies.reference import workloads

    candidates = [
        Candidate("u", "uniform:every=2", substitute="linear", baselines=False),
        Candidate("uncached", kind="uncached"),
        Candidate("uniform (3)", "uniform", kind="uniform", matches="u"),
        Candidate("made", Uniform(every=3)),
    ]
    network = nn.Linear(1, 1)
    recipe = recipe_of(workloads.image_dit(network=network, num_steps=7), candidates, [("batch_size", 4)])
    written = recipe.python(range(3, 9))
    compile(written, "snippet", "exec")
    assert "from cachepolicies.reference.workloads import image_dit" in written
    assert "workload = attrs.evolve(image_dit(), num_steps=7)" in written
    assert "    Candidate('u', 'uniform:every=2', substitute='linear', baselines=False),\n" in written
    assert "    # 'made' was made in Python: Uniform(" in written
    assert "compare(workload, candidates, range(3, 9), batch_size=4)" in written
    assert "[0, 5]" in recipe.python([0, 5])
    assert Recipe().python([0]) == ""


@pytest.mark.parametrize(
    ("module", "program", "typed"),
    [
        ("cachepolicies.reference.demo", "/somewhere/demo.py", "python -m cachepolicies.reference.demo --out 'a b'"),
        (None, "/somewhere/bin/cachepolicies", "cachepolicies --out 'a b'"),
        (None, "/somewhere/mine.py", ""),
        ("pytest.__main__", "/somewhere/pytest", ""),
    ],
)
def test_the_command_that_was_typed(monkeypatch, module, program, typed):
    main = types.ModuleType("__main__")
    main.__spec__ = None if module is None else importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr("sys.argv", [program, "--out", "a b"])
    assert command() == typed

"""What a report opens with, what its chart joins, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import io
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from rich.console import Console

from cachepolicies.base.errors import SettingsError
from cachepolicies.comparison import Candidate, Comparison, Inputs, Workload, compare
from cachepolicies.comparison._films import films
from cachepolicies.comparison._progress import progress_bar
from cachepolicies.comparison._svg import INK, PAPER, as_svg
from cachepolicies.comparison.figures import NARROW, WIDE, lines, quality
from cachepolicies.comparison.load import why_unreliable
from cachepolicies.comparison.report import rendered_report
from cachepolicies.comparison.results import Result


def tiny() -> Workload:
    """A linear velocity on two frames of 12 x 12."""

    def inputs(seeds):
        return Inputs(torch.stack([torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(s)) for s in seeds]))

    return Workload("tiny", lambda x, t: 0.5 * x, "flow-euler", 12, (2, 12, 12), inputs, lambda x: x.clamp(0, 1))


def result(label: str, kind: Any = "policy", psnr: float = 40.0, nfe: float = 10, **more: Any) -> Result:
    return Result(
        label=label,
        kind=kind,
        matches=more.pop("matches", None),
        policy="",
        num_steps=int(nfe) if kind == "fewer steps" else 50,
        nfe=(nfe,) * 2,
        calls=int(nfe) if kind == "fewer steps" else 50,
        model_calls=10,
        seconds=(1.0,),
        psnr=(psnr, psnr),
        ssim=(1.0, 1.0),
        scores={},
        pictures=torch.rand(2, 3, 8, 8),
        **more,
    )


def comparison(*results: Result, **more: Any) -> Comparison:
    uncached = result("uncached", "uncached", math.inf, 50)
    return Comparison("toy", (0, 1), (uncached, *results), (0, 1), {"steps": "50", "scheduler": "x"}, {}, **more)


@pytest.mark.parametrize(
    ("own", "plain", "said"),
    [
        (45.0, 30.0, "15.0 dB nearer than 10 plain steps instead of 50"),
        (30.0, 33.0, "which is worse than 10 plain steps instead of 50: they are 3.0 dB nearer; take fewer steps"),
        (30.0, 30.3, "no better than 10 plain steps instead of 50"),
    ],
)
def test_the_verdict_says_who_won(own, plain, said):
    both = comparison(result("a", psnr=own), result("fewer", "fewer steps", plain, matches="a"))
    assert (
        both.verdict() == f"toy: a takes 10.0 of 50 evaluations and is {own:.1f} dB from the uncached samples, {said}."
    )


def test_the_verdict_names_what_failed_and_what_saved_nothing():
    failed = comparison(result("a"), result("f", "fewer steps", 30.0, matches="a"), failures={"b": "RunError: no"})
    assert failed.verdict().endswith("1 of the candidates failed.")
    assert "nothing was saved" in comparison(result("never", psnr=math.inf, nfe=50)).verdict()
    assert "compared with nothing else" in comparison(result("a")).verdict()


def test_every_method_has_one_line_in_the_order_of_its_work():
    several = comparison(
        result("a", nfe=20, psnr=45.0, method="best"),
        result("b", nfe=10, psnr=35.0, method="best"),
        result("c", nfe=15, psnr=30.0, method="teacache, hold at blocks"),
        result("d", "fewer steps", 25.0, 10),
        result("e", "fewer steps", 28.0, 20),
    )
    drawn = {line.label: [point[0] for point in line.points] for line in lines(several)}
    assert drawn == {"best": [10, 20], "teacache, hold at blocks": [15], "fewer steps": [10, 20]}


def test_a_line_does_not_go_up_and_down_at_one_work():
    rows = [result(f"{psnr}", nfe=nfe, psnr=psnr, method="m") for nfe, psnr in ((20, 45.0), (10, 30.0), (10.2, 36.0))]
    [line] = lines(comparison(*rows))
    assert len(line.points) == 3
    assert line.joined == ((10.2, 36.0), (20, 45.0))


def test_the_chart_has_these_lines_and_its_legend_beside_the_data():
    rows = [result(f"{psnr}", nfe=nfe, psnr=psnr, method="m") for nfe, psnr in ((20, 45.0), (10, 30.0))]
    found = comparison(*rows, result("f", "fewer steps", 20.0, 10), result("g", "foreign", 21.0, 12, method="other"))
    for width in (WIDE, NARROW):
        figure = quality(found, width)
        figure.draw_without_rendering()
        [axes], [legend] = figure.axes, figure.legends
        named = [line.label for line in lines(found)]
        assert named == ["m", "other", "fewer steps"]
        assert [text.get_text() for text in legend.get_texts()] == named
        assert [line.get_label() for line in axes.lines] == named
        assert not axes.get_window_extent().overlaps(legend.get_window_extent())
        low, high = axes.get_xlim()
        assert high - low >= 0.3 * 50
    assert quality(comparison(result("equal", psnr=math.inf))).axes


def test_figures_take_their_colours_from_the_page():
    svg = as_svg(quality(comparison(result("a"))), "q")
    assert svg.startswith("<svg")
    assert "var(--ink)" in svg
    assert not re.search(f"{INK}|{PAPER}|#000000|xmlns|<metadata", svg)


def test_a_failed_candidate_leaves_the_others():
    def breaks(workload):
        class Broken:
            evaluations = 0

            def __call__(self, x, t, *args, **kwargs):
                raise RuntimeError("out of memory")

        return Broken()

    candidates = [Candidate("broken", foreign=breaks), Candidate("every second", "uniform:every=2")]
    found = compare(tiny(), candidates, [0, 1], progress=False)
    assert found.failures == {"broken": "RuntimeError: out of memory"}
    assert "every second" in [each.label for each in found.results]
    assert "broken" not in [each.label for each in found.results]
    with pytest.raises(RuntimeError, match="out of memory"):
        compare(tiny(), candidates[:1], [0, 1], progress=False)
    with pytest.raises(SettingsError):  # what is wrong with a setting is said before anything is sampled
        compare(tiny(), [Candidate("a", "uniform:every=2"), Candidate("b", "sencache:epsilon=-1")], [0], progress=False)


def test_wall_times_of_a_busy_machine_are_marked():
    assert why_unreliable([1.0, 1.05], 0.1, None) == ""
    assert "took 1.0 s once and 2.0 s another time" in why_unreliable([1.0, 2.0], 0.0, None)
    assert "before it began" in why_unreliable([1.0, 1.0], 3.0, None)
    assert "beside its own" in why_unreliable([1.0], 0.0, torch.get_num_threads() + 4.0)
    busy = comparison(result("a"), busy="3.0 processes were running before it began")
    console = Console(file=io.StringIO(), width=200)
    console.print(busy.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "~1.0" in text
    assert "x " not in text.split("seconds")[1].split("busy")[0]  # no ratio is made of them
    assert "The machine was busy" in rendered_report(busy)


def test_the_report_needs_nothing_but_itself():
    html = rendered_report(
        comparison(result("a"), result("f", "fewer steps", 30.0, matches="a"), repeat="compare(...)")
    )
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html
    assert not re.search(r"url\((?!data:|#)|<link|@import", html)
    assert html.count('class="film ') == 2 * 2 * 3  # seeds, ways of sampling; uncached, cached, difference
    assert "@keyframes play" in html
    body = html[html.index("<body>") :]
    assert body.index("</h1>") < body.index('class="verdict"') < body.index("<section>")
    assert "prefers-color-scheme: dark" in html
    assert "compare(...)" in html


def decoded(data):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_videos_are_sheets_of_frames_with_their_difference():
    found = comparison(result("a"), result("b"))
    assert [film.seed for film in films(found)] == [0, 1]
    reference, a, _ = films(found)[0].showings
    assert (reference.difference, reference.distance, a.distance) == (None, "", "40.0 dB")
    assert (a.cached.count, a.cached.width, a.cached.height) == (3, 8, 8)
    last = found.results[1].pictures[0, 2].numpy()
    assert np.asarray(decoded(a.cached.data))[:, 16:] == pytest.approx(last * 255, abs=0.51)
    assert a.difference is not None
    assert decoded(a.difference.data).size == (24, 8)
    showings = [showing for film in films(found) for showing in film.showings]
    names = [sheet.name for each in showings for sheet in (each.cached, each.difference) if sheet]
    assert len(set(names)) == len(names)


def test_large_and_long_videos_are_made_smaller():
    uncached, large = (
        evolve(result(name, kind), pictures=torch.rand(2, 40, 100, 400))
        for name, kind in (("uncached", "uncached"), ("a", "policy"))
    )
    sheet = films(evolve(comparison(large), results=(uncached, large)))[0].showings[1].cached
    assert (sheet.count, decoded(sheet.data).size) == (24, (24 * 160, 40))


def test_pictures_do_not_play():
    uncached, one = (
        evolve(result(name, kind), pictures=torch.rand(2, 1, 8, 8))
        for name, kind in (("uncached", "uncached"), ("a", "policy"))
    )
    html = rendered_report(evolve(comparison(one), results=(uncached, one)))
    assert "@keyframes" not in html
    assert html.count('class="row"') == 3


def test_progress_is_shown_where_it_is_piped():
    out = io.StringIO()
    with progress_bar(True, Console(file=out, width=100)) as report:
        for done in range(1, 51):
            report("uncached", done, 50)
    lines = out.getvalue().splitlines()
    assert lines[0] == "uncached: 1/50"
    assert lines[-1] == "uncached: 50/50"
    assert len(lines) <= 4


def test_it_can_be_repeated_from_what_it_says(tmp_path):
    found = compare(tiny(), [Candidate("half", "uniform", budget=0.5)], [3, 4], progress=False, baselines=False)
    names = {"compare": lambda *args, **options: (args, options), "Candidate": Candidate, "workload": None}
    (_, candidates, seeds), options = eval(found.repeat, names)
    assert candidates == [Candidate("half", "uniform", budget=0.5)]
    assert list(seeds) == [3, 4]
    assert options == {"batch_size": 32, "repeats": 1, "baselines": False}
    assert evolve(candidates[0]) == candidates[0]

"""What a report opens with, what its chart joins, and that it needs nothing but itself."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
import torch
from attrs import evolve
from rich.console import Console

from cachepolicies.base.errors import SettingsError
from cachepolicies.comparison import Candidate, Comparison, compare
from cachepolicies.comparison._progress import progress_bar
from cachepolicies.comparison.figures import lines_of, played
from cachepolicies.comparison.load import why_unreliable
from cachepolicies.comparison.report import rendered_report
from cachepolicies.comparison.results import Result
from test_comparison import tiny


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
    lines = {line.name: [point[0] for point in line.points] for line in lines_of(several)}
    assert lines == {"best": [10, 20], "teacache, hold at blocks": [15], "fewer steps": [10, 20]}


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
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html
    assert html.count("data:image/gif") == 2  # both shown videos play
    assert "prefers-color-scheme: dark" in html
    assert "compare(...)" in html


def test_videos_play_side_by_side():
    from PIL import Image

    both = comparison(result("a"))
    image = Image.open(io.BytesIO(played(both, both.results[1], 0)))
    assert image.n_frames == 3
    assert image.width > 3 * image.height


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

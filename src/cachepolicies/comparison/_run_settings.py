"""What a comparison was run with: for a reader, for the lines of the chart, and to do it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import field, frozen

from cachepolicies.base.converters import as_dict, as_tuple


@frozen
class Method:
    """What rows that differ only in settings or budget have in common.

    Attributes:
        policy: its name; the kind of a row without one.
        substitute: what stands in for a skipped evaluation, as it was written.
        site: name of where an evaluation is cut.
    """

    policy: str
    substitute: str = "hold"
    site: str = "output"

    @property
    def label(self) -> str:
        """For a legend; what is as usual is left out."""
        substitute = "" if self.substitute == "hold" else f", {self.substitute}"
        return self.policy + substitute + ("" if self.site == "output" else f" at {self.site}")


@frozen
class Recipe:
    """How a comparison is done again.

    Attributes:
        command: what was typed to run it; empty if that is not known.
        workload: lines of Python that make the workload.
        candidates: lines of a list of them.
        options: further arguments of `compare`, as they are written.
    """

    command: str = ""
    workload: tuple[str, ...] = field(default=(), converter=as_tuple)
    candidates: tuple[str, ...] = field(default=(), converter=as_tuple)
    options: str = ""

    def python(self, seeds: Sequence[int]) -> str:
        """Return Python that does the same again with these seeds; empty if it is not known what was done."""
        if not self.candidates:
            return ""
        lines = [
            "from cachepolicies.comparison import Candidate, compare, write_report",
            *self.workload,
            "candidates = [",
            *(f"    {line}" for line in self.candidates),
            "]",
            f"comparison = compare(workload, candidates, {_seeds(seeds)}{self.options})",
            'write_report(comparison, "report.html")',
        ]
        return "\n".join(lines)


@frozen(eq=False)
class RunSettings(Mapping[str, str]):
    """Settings of a comparison, name to text.

    Attributes:
        texts: what the mapping holds.
        methods: label of a result to its method.
        recipe: how to do it again.
    """

    texts: Mapping[str, str] = field(converter=as_dict)
    methods: Mapping[str, Method] = field(factory=dict)
    recipe: Recipe = Recipe()

    def __getitem__(self, name: str) -> str:
        return self.texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


def as_run_settings(settings: Mapping[str, str]) -> RunSettings:
    """Return the mapping as `RunSettings`."""
    return settings if isinstance(settings, RunSettings) else RunSettings(settings)


def _seeds(seeds: Sequence[int]) -> str:
    whole = range(seeds[0], seeds[0] + len(seeds))
    if list(seeds) != list(whole):
        return repr(list(seeds))
    return f"range({len(seeds)})" if seeds[0] == 0 else repr(whole)

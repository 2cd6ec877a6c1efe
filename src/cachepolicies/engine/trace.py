"""What was decided, call by call."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, define, evolve, field, frozen
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachepolicies.base.console import PlainTable
from cachepolicies.contracts.reasons import Reason

if TYPE_CHECKING:
    import pandas as pd


@frozen(slots=True)
class AuditRecord:
    """A reused call that was evaluated all the same, to see how far the substitute was off.

    Attributes:
        true_error: RMS difference between the evaluation and the substitute, by decision; ``nan`` where the decision
            was to evaluate.
        predicted_error: the policy's score there, or ``None`` where it is no RMS change.
    """

    true_error: tuple[float, ...]
    predicted_error: tuple[float, ...] | None


Clipped = tuple[bool, ...] | Callable[[], tuple[bool, ...]] | None
"""Which decisions were clipped, or a function that reads it from the device when somebody looks."""


@define(slots=True)
class CallRecord:
    """One place of one call of the denoiser; most sites have one place, and a call is one record.

    Attributes:
        t: noise level.
        branch: which branch was called.
        evaluated: for each decision, whether the model was evaluated.
        reason: why, for each decision: a member of the policy's, or the engine's, enumeration.
        score: the policy's estimate for each decision, or ``None``.
        tolerance: what it was compared with, or ``None``.
        led: whether the decision was taken here; ``False`` where it followed another branch at the same t, or another
            place of the same call.
        index: step of the run that t lies in, or ``None`` when the run was not declared.
        model_called: whether the model was called at all, for any row (audits, and what is verified, aside).
        audit: filled where the call was audited.
        order: for each decision, the order that the substitute had, lower than its own while history was short;
            ``None`` where the model was evaluated. ``None`` altogether if nothing was reused or the substitute does
            not say.
        call: number of the call in its run.
        place: of the site; ``""`` where it has one.
        saved: the part of the call's uncached work that was not done here, a fraction of its FLOPs; ``None`` where it
            is not known what a reuse of this place skips.
        verified: whether what was reused was computed all the same, for the policy to compare; it saved nothing then.
    """

    t: float
    branch: str
    evaluated: tuple[bool, ...]
    reason: tuple[Reason, ...]
    score: tuple[float, ...] | None
    tolerance: tuple[float, ...] | None
    led: bool
    index: int | None
    model_called: bool
    audit: AuditRecord | None = None
    order: tuple[int | None, ...] | None = None
    _clipped: Clipped = field(default=None, alias="clipped", repr=False, eq=False)
    call: int = 0
    place: str = ""
    saved: float | None = 0.0
    verified: bool = False

    @property
    def clipped(self) -> tuple[bool, ...] | None:
        """For each decision, whether the guard held the newest output in the place of an extrapolation.

        ``None`` if nothing was reused. On an accelerator this waits for the device the first time.
        """
        if callable(self._clipped):
            self._clipped = self._clipped()
        return self._clipped


@define(eq=False)
class Trace:
    """The record of one run. Prints as a table.

    Attributes:
        policy: name of the policy.
        substitute: name of the substitute.
        records: one entry a place of a call, in order.
        notes: what else there is to know: differences to the profile, restarts.
        order: order of the substitute once its history is long enough, ``None`` if it is no extrapolation.
        measurements: further evaluations of the whole batch, made to measure what later runs need.
    """

    policy: str
    substitute: str
    records: list[CallRecord] = field(factory=list)
    notes: list[str] = field(factory=list)
    order: int | None = None
    measurements: int = 0

    @property
    def calls(self) -> int:
        """How often the sampler called the denoiser."""
        return len({record.call for record in self.records})

    @property
    def model_calls(self) -> int:
        """How often anything was evaluated, for any number of rows; audits, and what is verified, are not counted."""
        return len({record.call for record in self.records if record.model_called})

    @property
    def audit_calls(self) -> int:
        """How often the model was called only to audit."""
        return sum(record.audit is not None and not record.verified for record in self.records)

    @property
    def verified_calls(self) -> int:
        """How often a place was computed only to be compared with what stood in for it, as the policy asked."""
        return sum(record.verified for record in self.records)

    @property
    def nfe_per_sample(self) -> tuple[float, ...]:
        """Evaluations of each sample (of the batch, with one decision for all).

        A call of a site with several places counts as the part of them that was evaluated.
        """
        width = max((len(record.evaluated) for record in self.records), default=0)
        places = Counter(record.call for record in self.records)
        if all(count == 1 for count in places.values()):
            return tuple(sum(r.evaluated[d] for r in self.records if d < len(r.evaluated)) for d in range(width))
        return tuple(
            math.fsum(r.evaluated[d] / places[r.call] for r in self.records if d < len(r.evaluated))
            for d in range(width)
        )

    @property
    def nfe(self) -> float:
        """Evaluations per sample, the mean over the samples. Separate guidance branches count separately."""
        counts = self.nfe_per_sample
        return sum(counts) / len(counts) if counts else 0.0

    @property
    def cache_ratio(self) -> float:
        """Reused calls / all calls, the mean over the samples."""
        decided = sum(len(record.evaluated) for record in self.records)
        evaluated = sum(sum(record.evaluated) for record in self.records)
        return 1.0 - evaluated / decided if decided else 0.0

    @property
    def work(self) -> float | None:
        """The fraction of the uncached work that was done, by FLOPs, the mean over the calls; audits are not counted.

        An evaluation is 1, a reuse is what still runs: nothing at the denoiser's output, embedding and head at the
        block stack; what is verified counts as done. ``None`` where it is not known: inside a compiled network nothing
        is measured.
        """
        saved = [record.saved for record in self.records]
        if not saved or None in saved:
            return None
        return 1.0 - math.fsum(part for part in saved if part is not None) / self.calls

    @property
    def places(self) -> tuple[str, ...]:
        """The places that were reached, in order of their first call."""
        return tuple(dict.fromkeys(record.place for record in self.records))

    def reasons(self) -> dict[str, int]:
        """Return how often each reason decided, over all calls and samples, most frequent first."""
        return dict(Counter(reason.text for record in self.records for reason in record.reason).most_common())

    def orders(self) -> dict[int, int]:
        """Return how often each order of the substitute stood in, over all calls and samples, highest order first."""
        found = Counter(order for record in self.records for order in record.order or () if order is not None)
        return dict(sorted(found.items(), reverse=True))

    @property
    def clipped(self) -> int:
        """How often the guard held an output in the place of an extrapolation, over all calls and samples."""
        return sum(sum(record.clipped or ()) for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain values; not-a-number becomes ``None``."""
        summary = {
            "policy": self.policy,
            "substitute": self.substitute,
            "calls": self.calls,
            "model_calls": self.model_calls,
            "audit_calls": self.audit_calls,
            "verified_calls": self.verified_calls,
            "measurements": self.measurements,
            "nfe": self.nfe,
            "nfe_per_sample": list(self.nfe_per_sample),
            "cache_ratio": self.cache_ratio,
            "work": self.work,
            "order": self.order,
            "orders": {str(order): times for order, times in self.orders().items()},
            "clipped": self.clipped,
            "notes": list(self.notes),
        }
        return summary | {"records": [_plain(_as_dict(record)) for record in self.records]}

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the trace as JSON text, and write it to ``path`` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per call and sample.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas; install it, or use to_dict or to_json") from error
        rows = []
        for record in self.records:
            for d, evaluated in enumerate(record.evaluated):
                rows.append(
                    {
                        "call": record.call,
                        "place": record.place,
                        "index": record.index,
                        "t": record.t,
                        "branch": record.branch,
                        "sample": d,
                        "evaluated": evaluated,
                        "verified": record.verified,
                        "reason": record.reason[d].text,
                        "score": record.score[d] if record.score else math.nan,
                        "tolerance": record.tolerance[d] if record.tolerance else math.nan,
                        "order": math.nan if not record.order or (order := record.order[d]) is None else order,
                        "clipped": bool(record.clipped and record.clipped[d]),
                        "true_error": record.audit.true_error[d] if record.audit else math.nan,
                    }
                )
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """Return one line: calls, evaluations, cache ratio; of an extrapolation its orders and what was clipped."""
        line = (
            f"{self.policy} with {self.substitute}: {self.nfe:.4g} evaluations in {self.calls} calls, "
            f"cache ratio {self.cache_ratio:.1%}{self._work_summary()}"
        )
        if self.verified_calls:
            line += f", {self.verified_calls} verified"
        if self.measurements:
            line += f", and {self.measurements} further ones to measure"
        orders = self.orders()
        if self.order == 0 or not orders:
            return line
        shown = ", ".join(f"{times} of order {order}" for order, times in orders.items())
        return f"{line}; {shown}, {self.clipped} clipped"

    def _work_summary(self) -> str:
        """Return the work done, where it is not what the evaluations say anyway."""
        work = self.work
        if work is None:
            return ", work not known"
        return "" if math.isclose(work, 1.0 - self.cache_ratio, abs_tol=5e-4) else f", {work:.1%} of the work"

    def table(self) -> Table:
        """Return the calls as a rich table: ``#`` is an evaluated sample, ``.`` a reused one, ``?`` a verified one."""
        table = PlainTable(title=self.summary(), caption=Text("\n".join(self.notes)), caption_justify="left")
        several = self.places != ("",)
        headings = ["call", "step", "t", "branch", *(["place"] if several else []), "samples", "score", "tolerance"]
        for heading in (*headings, "order", "clipped", "reason", "true error"):
            table.add_column(
                heading, justify="left" if heading in ("branch", "place", "samples", "reason") else "right"
            )
        for record in self.records:
            reasons = Counter(reason.text for reason in record.reason)
            described = ", ".join(r if len(reasons) == 1 else f"{r} ({n})" for r, n in reasons.most_common())
            table.add_row(
                str(record.call),
                "" if record.index is None else str(record.index),
                f"{record.t:.4g}",
                Text(record.branch),
                *([Text(record.place)] if several else []),
                "".join("#" if evaluated else "?" if record.verified else "." for evaluated in record.evaluated),
                _span(record.score),
                _span(record.tolerance),
                _span(tuple(math.nan if order is None else float(order) for order in record.order or ())),
                str(sum(record.clipped or ()) or ""),
                Text(described if record.led else f"{described} (shared)"),
                _span(record.audit.true_error) if record.audit else "",
            )
        return table

    def __str__(self) -> str:
        console = Console(width=160, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def joined(traces: Sequence[tuple[str, Trace]]) -> Trace:
    """Return the traces of several denoisers of one pipeline as one, a single one as it is.

    Args:
        traces: name and trace of each, in the order in which they serve a run; the name goes in front of the branch.
    """
    if len(traces) == 1:
        return traces[0][1]
    first, records, calls = traces[0][1], [], 0
    for name, trace in traces:
        for entry in trace.records:
            records.append(evolve(entry, branch=f"{name} {entry.branch}", call=entry.call + calls))
        calls += trace.calls
    notes = [f"{name}: {note}" for name, trace in traces for note in trace.notes]
    measured = sum(trace.measurements for _, trace in traces)
    return Trace(first.policy, first.substitute, records, notes, first.order, measured)


def _as_dict(record: CallRecord) -> dict[str, Any]:
    values = asdict(record, filter=lambda attribute, value: attribute.name != "_clipped")
    return values | {"clipped": record.clipped}


def _span(values: tuple[float, ...] | None) -> str:
    finite = [v for v in values or () if not math.isnan(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return float(value) if math.isfinite(value) else None

"""The results as one table and as JSON. Both have the same rows."""

from dataclasses import asdict
from typing import Any

from benchmarks.gpu_check.report import FAILED, LEFT_OUT, PASSED, Row
from benchmarks.gpu_check.runner import Result

_WIDTH = 62  # of a check's name


def to_json(results: list[Result], device: str) -> dict[str, Any]:
    """Returns the content of result.json."""
    stages = [
        {
            "name": result.stage.name,
            "about": result.stage.about,
            "outcome": result.outcome,
            "reason": result.reason,
            "seconds": round(result.seconds, 1),
            "limit": result.stage.seconds,
            "rows": [asdict(row) for row in result.rows],
        }
        for result in results
    ]
    return {"device": device, "outcome": FAILED if any_failed(results) else PASSED, "stages": stages}


def any_failed(results: list[Result]) -> bool:
    """Returns whether a stage failed."""
    return any(result.outcome == FAILED for result in results)


def format_table(results: list[Result]) -> str:
    """Returns the table: a line for each stage, and below it one for each of its rows."""
    lines = []
    for result in results:
        about = f"{result.stage.name}: {result.stage.about}"
        lines += ["", f"{about} ({result.outcome}, {result.seconds:.0f} s)"]
        if result.reason:
            lines.append(f"  {result.outcome}: {result.reason}")
        lines += [_format_row(row) for row in result.rows]
    counts = [
        f"{sum(result.outcome == outcome for result in results)} {outcome}" for outcome in (PASSED, FAILED, LEFT_OUT)
    ]
    rows = [row for result in results for row in result.rows]
    failed = sum(row.outcome == FAILED for row in rows)
    lines += ["", f"stages: {', '.join(counts)}; of {len(rows)} rows {failed} failed"]
    return "\n".join(lines[1:])


def _format_row(row: Row) -> str:
    value = "" if row.value is None else f"{format_number(row.value)} {row.unit}".rstrip()
    limit = "" if row.limit is None else f"≤ {format_number(row.limit)}"
    name = row.check if len(row.check) <= _WIDTH else f"{row.check[: _WIDTH - 1]}…"
    return f"  {row.outcome:<8}  {name:<{_WIDTH}} {value:>16} {limit:>10}  {row.note}".rstrip()


def format_number(value: float) -> str:
    """Returns a number with about three digits."""
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    if abs(value) < 1e-2 or abs(value) >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

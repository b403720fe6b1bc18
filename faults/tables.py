"""What the points came to, verb by fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faults.points import FAULTS, Verdict
from faults.scenes import SCENES

_COUNTED = ("lost", "corrupt", "unequal", "unclear")


def summary(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """A row for each verb and fault: points, those with something wrong, temporary files that were left."""
    rows = []
    for scene in SCENES:
        for fault in FAULTS:
            own = [v for v in verdicts if (v.point.scene.name, v.point.fault.name) == (scene.name, fault.name)]
            if own:
                counts = {name: sum(bool(getattr(v, name)) for v in own) for name in _COUNTED}
                counts["died"] = sum(v.died for v in own)
                left = {"left": sum(v.left for v in own), "left_bytes": sum(v.left_bytes for v in own)}
                rows.append({"verb": scene.name, "fault": fault.name, "points": len(own), **counts, **left})
    return rows


def table(verdicts: Sequence[Verdict]) -> str:
    """As Markdown: a row for each verb, a column for each fault, points and those with something wrong."""
    rows = summary(verdicts)
    names = [fault.name for fault in FAULTS]
    lines = [f"| verb | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for scene in SCENES:
        cells = []
        for name in names:
            own = [row for row in rows if (row["verb"], row["fault"]) == (scene.name, name)]
            wrong = sum(row[key] for row in own for key in _COUNTED)
            cells.append(f"{sum(row['points'] for row in own)}" + (f" ({wrong} wrong)" if wrong else ""))
        lines.append(f"| {scene.name} | {' | '.join(cells)} |")
    totals = {key: sum(row[key] for row in rows) for key in ("points", *_COUNTED, "died", "left", "left_bytes")}
    said = ", ".join(f"{number} {name}" for name, number in totals.items())
    return "\n".join([*lines, "", said])

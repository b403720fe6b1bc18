"""What the points came to, verb by fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from faults.points import FAULTS
from faults.scenes import SCENES

WRONG = ("lost", "corrupt", "unequal", "unclear")
Told = Mapping[str, Any]
"""A verdict, as `Verdict.told` gives it."""


def is_fine(told: Told) -> bool:
    """Whether nothing is wrong."""
    return not any(told[name] for name in WRONG)


def summary(points: Iterable[Told]) -> list[dict[str, Any]]:
    """A row for each verb and fault: points, those with something wrong, temporary files that were left."""
    points, rows = list(points), []
    for verb in (scene.name for scene in SCENES):
        for fault in (fault.name for fault in FAULTS):
            own = [told for told in points if (told["verb"], told["fault"]) == (verb, fault)]
            if own:
                counts = {name: sum(bool(told[name]) for told in own) for name in (*WRONG, "died")}
                counts |= {name: sum(told[name] for told in own) for name in ("left", "left_bytes")}
                rows.append({"verb": verb, "fault": fault, "points": len(own), **counts})
    return rows


def table(points: Iterable[Told]) -> str:
    """As Markdown: a row for each verb, points of each fault and how many of all were wrong in which way."""
    rows, names = summary(points), [fault.name for fault in FAULTS]
    lines = [f"| verb | {' | '.join(names)} | {' | '.join(WRONG)} |", "|---" * (len(names) + len(WRONG) + 1) + "|"]
    for verb in [scene.name for scene in SCENES] + ["all"]:
        own = [row for row in rows if verb in (row["verb"], "all")]
        counts = [sum(row["points"] for row in own if row["fault"] == name) for name in names]
        wrong = [sum(row[name] for row in own) for name in WRONG]
        lines.append(f"| {' | '.join(map(str, [verb, *counts, *wrong]))} |")
    totals = {name: sum(row[name] for row in rows) for name in ("points", "died", "left", "left_bytes")}
    return "\n".join([*lines, "", ", ".join(f"{number} {name}" for name, number in totals.items())])

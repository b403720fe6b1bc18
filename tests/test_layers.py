"""Imports go one way. The table is the architecture; this test keeps it true."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "histoflow"
BASE = {"_errors", "_keys", "_files", "_lazy", "_progress"}
MAY_IMPORT = {
    "_errors": set(),
    "_lazy": set(),
    "_progress": set(),
    "_keys": {"_errors"},
    "_files": {"_errors"},
    "flow": BASE,
    "io": BASE,
    "pp": BASE | {"stats"},
    "pl": BASE,
    "stats": BASE,
    "cohort": BASE,
    "models": BASE | {"flow", "pp", "stats"},
    "bench": BASE | {"models", "pl", "stats", "pp"},
    "datasets": BASE | {"io", "pp"},
}
MAY_IMPORT["workflow"] = set(MAY_IMPORT)  # all of the above
MAY_IMPORT["cli"] = set(MAY_IMPORT)  # and workflow
MAY_IMPORT["__main__"] = {"cli"}  # nobody else imports cli
EXTERNAL_BAN = {"flow": {"anndata", "spatialdata", "lazyslide", "wsidata", "pandas"}}


def imported(source: str, name: str) -> set[str]:
    """Dotted names a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(source: str, unit: str) -> set[str]:
    """What a file of `unit` imports against the table."""
    names = imported(source, unit)
    inside = {n.split(".")[1] for n in names if n.startswith("histoflow.")} - {unit}
    found = inside - MAY_IMPORT[unit]
    if "histoflow" in names:
        found.add("histoflow")
    return found | ({n.split(".")[0] for n in names} & EXTERNAL_BAN.get(unit, set()))


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_follow_the_table(path):
    unit = path.relative_to(SRC).parts[0].removesuffix(".py")
    if unit == "__init__":
        return
    assert not violations(path.read_text(), unit), f"{path.relative_to(SRC)}: import the part you need, downwards"


@pytest.mark.parametrize(
    ("source", "unit"),
    [
        ("import histoflow as hf", "io"),
        ("import anndata", "flow"),
        ("from histoflow.io import read_st", "flow"),
        ("from histoflow import io", "models"),
        ("import histoflow.cli", "workflow"),
        ("from histoflow import cli", "bench"),
    ],
)
def test_the_table_catches(source, unit):
    assert violations(source, unit)


def test_files_stay_readable():
    long = {p.name: n for p in SRC.rglob("*.py") if (n := len(p.read_text().splitlines())) > 500}
    assert not long

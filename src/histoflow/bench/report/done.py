"""How it was done and on what: folds, genes, scale, seeds, versions, encoder and its licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from histoflow.bench.report.scores import CEILING, R, of_genes
from histoflow.bench.report.words import listed

_SCALES = {
    "library": "log1p of counts per 10,000: each spot's counts divided by their sum, times 10,000, then ln(1 + x)",
    "none": "log1p of raw counts: ln(1 + x)",
}


def of_evaluation(
    table: pd.DataFrame,
    protocol: Mapping[str, Any],
    known: Mapping[str, Any],
    source: str,
    trained_on: Mapping[str, list[str]],
) -> dict[str, Any]:
    """Tell how an evaluation was done.

    Parameters
    ----------
    table
        From `bench.run`.
    protocol
        Its record; empty where there is none.
    known
        Facts of a prediction of the model that is shown.
    source
        Where it comes from.
    trained_on
        By held-out section, as its prediction tells.

    Returns
    -------
    `facts`, pairs of term and text; `folds`, one record each.
    """
    models = [str(model) for model in table["model"].unique() if model != CEILING]
    pairs = [
        ("data", f"{table['dataset'].iloc[0]}; held out by {table['by'].iloc[0]}"),
        ("models", listed(models, 20)),
        ("seeds", listed([str(seed) for seed in sorted(table["seed"].unique())])),
        ("scale", _scale({**known, **protocol})),
        ("spots", _spots(protocol)),
        ("panel", _panel(known)),
        *_of_encoder(known),
        ("versions", _versions(protocol.get("versions") or known.get("versions") or {})),
        ("files", source),
    ]
    return {"facts": [(term, text) for term, text in pairs if text], "folds": _folds(table, protocol, trained_on)}


def of_prediction(known: Mapping[str, Any], source: str, n_places: int, n_genes: int) -> dict[str, Any]:
    """Tell how a prediction was made.

    Parameters
    ----------
    known
        Its facts.
    source
        Where it comes from.
    n_places, n_genes
        How many spots or tiles, and genes.

    Returns
    -------
    As `of_evaluation`, without folds.
    """
    pairs = [
        ("slide", str(known.get("slide", ""))),
        ("µm per pixel", _mpp(known)),
        ("model", str(known.get("method", ""))),
        ("trained on", listed([str(name) for name in known.get("trained_on", [])], 20)),
        ("predicted", f"{n_genes} genes at {n_places} places"),
        ("scale", _scale(known)),
        ("panel", _panel(known)),
        *_of_encoder(known),
        ("seed", f"{known['seed']}; {known.get('n_samples', 1)} draws" if "seed" in known else ""),
        ("versions", _versions(known.get("versions") or {})),
        ("file", source),
    ]
    return {"facts": [(term, text) for term, text in pairs if text], "folds": []}


def _scale(known: Mapping[str, Any]) -> str:
    return _SCALES.get(str(known.get("normalize")), str(known.get("scale", "")))


def _spots(protocol: Mapping[str, Any]) -> str:
    if "min_counts" not in protocol:
        return ""
    left_out = protocol.get("n_spots_left_out", protocol.get("spots_left_out"))
    return f"with at least {protocol['min_counts']} counts" + (f"; {left_out} left out" if left_out is not None else "")


def _panel(known: Mapping[str, Any]) -> str:
    if "panel" not in known:
        return ""
    return f"{len(known['panel'])} genes, rule {known.get('panel_rule')}, hash {known.get('panel_hash')}"


def _of_encoder(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    made = known.get("embedding") or {}
    if "name" not in made:
        return []
    looks = f"{made['name']} {made.get('version', '')}".strip()
    patches = " and ".join(f"{float(um):g}" for um in made.get("patch_um", []))
    return [
        ("encoder", f"{looks}, patches of {patches} µm" if patches else looks),
        ("encoder's licence", str(made.get("licence", "not stated"))),
    ]


def _mpp(known: Mapping[str, Any]) -> str:
    if "mpp_x" not in known:
        return ""
    return f"{float(known['mpp_x']):.4g} × {float(known['mpp_y']):.4g}, from {known.get('mpp_source', 'not stated')}"


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _folds(
    table: pd.DataFrame, protocol: Mapping[str, Any], trained_on: Mapping[str, list[str]]
) -> list[dict[str, str]]:
    """What each fold was tested on, what it shares with its training part, and what was recorded beside it."""
    recorded = protocol.get("folds")
    by_name = {str(fold.get("name", fold.get("fold"))): fold for fold in recorded} if isinstance(recorded, list) else {}
    return [
        _fold(str(name), rows, by_name.get(str(name), {}), trained_on)
        for name, rows in of_genes(table, R).groupby("fold", sort=False)
    ]


def _fold(
    name: str, rows: pd.DataFrame, recorded: Mapping[str, Any], trained_on: Mapping[str, list[str]]
) -> dict[str, str]:
    findings = [
        found.get("sentence", "") if isinstance(found, dict) else found for found in recorded.get("findings", [])
    ]
    test = [str(section) for section in rows["section"].unique()]
    train = recorded.get("train") or trained_on.get(test[0], [])
    return {
        "name": name,
        "test": listed(test, 20),
        "train": listed([str(section) for section in train], 20),
        "genes": str(rows["gene"].nunique()),
        "shares": " ".join([str(rows["shares"].iloc[0]), *map(str, findings)]),
    }

"""How it was done and on what: folds, genes, scale, seeds, versions, encoder and its licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from histoflow.bench.ceiling import CEILING_MODEL
from histoflow.bench.report.scores import R, of_genes
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
    models = [str(model) for model in table["model"].unique() if model != CEILING_MODEL]
    pairs = [
        ("data", f"{table['dataset'].iloc[0]}; held out by {table['by'].iloc[0]}"),
        ("models", listed(models, 20)),
        ("seeds", listed([str(seed) for seed in sorted(table["seed"].unique())])),
        ("scale", _scale({**known, **protocol})),
        ("spots", _spots(protocol)),
        ("panel", _panel(known)),
        *_of_models(protocol),
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


def findings(protocol: Mapping[str, Any]) -> list[str]:
    """What an audit found against the folds, as one warning; none where it found nothing."""
    found = list(dict.fromkeys(sentence for fold in _recorded(protocol).values() for sentence in _sentences(fold)))
    return [f"An audit of the folds found: {listed(found, 6, '; ')}."] if found else []


def _recorded(protocol: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The folds of a record, by name."""
    return {str(fold.get("name")): fold for fold in protocol.get("folds") or []}


def _sentences(fold: Mapping[str, Any]) -> list[str]:
    found = fold.get("findings") or []
    return [str(finding["sentence"]) for finding in found if isinstance(finding, Mapping) and "sentence" in finding]


def _of_models(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The options of every model of a record that states them."""
    stated = protocol.get("models")
    if not isinstance(stated, Mapping):
        return []
    options = {str(name): one.get("options") for name, one in stated.items() if isinstance(one, Mapping)}
    return [(f"options of {name}", _flat(told)) for name, told in options.items() if isinstance(told, Mapping)]


def _flat(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)


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
    recorded = _recorded(protocol)
    return [
        _fold(str(name), rows, recorded.get(str(name), {}), trained_on)
        for name, rows in of_genes(table, R).groupby("fold", sort=False)
    ]


def _fold(
    name: str, rows: pd.DataFrame, recorded: Mapping[str, Any], trained_on: Mapping[str, list[str]]
) -> dict[str, str]:
    told = [trained_on[section] for section in rows["section"].unique() if section in trained_on]
    train = recorded.get("train") or (told[0] if told else [])
    return {
        "name": name,
        "test": listed([str(section) for section in rows["of_section"].unique()], 20),
        "train": listed([str(section) for section in train], 20),
        "genes": f"{rows['gene'].nunique()}{_hash(recorded)}",
        "shares": "; ".join([str(rows["shares"].iloc[0]), *_sentences(recorded)]),
    }


def _hash(recorded: Mapping[str, Any]) -> str:
    panel = recorded.get("panel") or {}
    return f", hash {panel['hash']}" if "hash" in panel else ""

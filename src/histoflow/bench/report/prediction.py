"""The shorter page of a prediction without counts: what was done, maps, what is known of each gene, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from histoflow._errors import MissingSlotError
from histoflow._keys import HELD_OUT_R, LOWER, STD, UPPER, facts
from histoflow.bench.report import cautions, done, words
from histoflow.bench.report.maps import UNFAMILIAR, Picture, mapped_genes, shown_sections
from histoflow.bench.report.page import render
from histoflow.bench.report.scores import first_rows, n_cut, numbers
from histoflow.bench.report.words import number

_LIMITS = (
    "There are no counts here to check against: nothing on this page says how well this slide is predicted.",
    "Compare places within one gene. One gene's values say nothing of another gene's: their errors differ.",
    "Expression that leaves no trace in the morphology cannot be seen, however clear the map.",
)


def prediction_page(
    predicted: AnnData, *, picture: Picture | None = None, no_picture: str = "", source: str = ""
) -> str:
    """Write a prediction as one HTML page that needs nothing else.

    Parameters
    ----------
    predicted
        From `Estimator.predict`.
    picture
        Of the tissue.
    no_picture
        Why there is none.
    source
        Where the prediction comes from, for the page to say.

    Returns
    -------
    The page.

    Raises
    ------
    MissingSlotError
        If `predicted` does not say how it was made, or has no places.
    MissingDependencyError
        If plotly is not installed.
    """
    known = facts(predicted)
    if "method" not in known:
        raise MissingSlotError('the AnnData has no uns["histoflow"]["method"]; give a prediction of histoflow predict')
    model, name = str(known["method"]), str(known.get("section") or "slide")
    ranked = _ranked(predicted)
    mapped, genes = mapped_genes(ranked), _genes(predicted, ranked)
    shown = shown_sections(
        [name], [model], lambda *_: predicted, genes=mapped, pictures={} if picture is None else {name: picture}
    )
    told = [text for text in cautions.of_maps(shown) if picture is not None or "no picture of the tissue" not in text]
    if picture is None:
        told.append(f"The maps are drawn without tissue: {no_picture or 'no picture of it was given'}.")
    content = {
        "title": f"{name}: predicted gene expression",
        "lead": _lead(predicted, known),
        "cautions": [*_of_widths(predicted), *told],
        "limits": [*_LIMITS, *_of_training(predicted, known)],
        "done": done.of_prediction(known, source, predicted.n_obs, predicted.n_vars),
        "glossary": _glossary(predicted),
        "n_mapped": len(mapped),
        "n_genes": predicted.n_vars,
        "n_genes_cut": n_cut(genes),
    }
    data = {
        "models": [],
        "ceiling": None,
        "chosen": model,
        "sections": shown.sections,
        "mapped": shown.models,
        "genes": {model: first_rows(genes)},
        "columns": _columns(predicted),
        "curves": {},
        "scale": str(known.get("scale", "log1p")),
    }
    return render("prediction.html.j2", content, data)


def _ranked(predicted: AnnData) -> list[str]:
    """Genes, best held-out r first where it is known."""
    if HELD_OUT_R not in predicted.var:
        return [str(gene) for gene in predicted.var_names]
    order = predicted.var[HELD_OUT_R].fillna(0.0).sort_values(ascending=False, kind="stable").index
    return [str(gene) for gene in order]


def _lead(predicted: AnnData, known: dict[str, Any]) -> str:
    text = f"{known['method']} predicted {predicted.n_vars} genes at {predicted.n_obs} places from the slide alone."
    if HELD_OUT_R in predicted.var:
        r = predicted.var[HELD_OUT_R].fillna(0.0).mean()
        text += f" On spots of its training sections that it had not seen, its mean r over these genes was {number(r)}."
    return text


def _of_widths(predicted: AnnData) -> list[str]:
    if LOWER in predicted.layers and UPPER in predicted.layers:
        return []
    if STD in predicted.layers:
        return ["The model is not calibrated: the spread of its draws is no interval of what would be measured."]
    return ["The model gives no interval: how sure it is of a place is not known."]


def _of_training(predicted: AnnData, known: dict[str, Any]) -> list[str]:
    told = []
    if trained_on := [str(section) for section in known.get("trained_on", [])]:
        told.append(
            f"The model has seen {words.listed(trained_on)} and nothing else: tissue, stain or scanner unlike theirs "
            "may be predicted wrongly."
        )
    if UNFAMILIAR not in predicted.obs:
        told.append("Whether this slide looks like those that the model was trained on has not been checked.")
    return told


def _genes(predicted: AnnData, ranked: list[str]) -> dict[str, Any]:
    own = predicted[:, ranked]
    x = np.asarray(own.X, dtype=float)
    metrics = {"mean": numbers(x.mean(axis=0)), "sd": numbers(x.std(axis=0))}
    if HELD_OUT_R in own.var:
        metrics = {HELD_OUT_R: numbers(own.var[HELD_OUT_R].to_numpy(float)), **metrics}
    if LOWER in own.layers and UPPER in own.layers:
        metrics["width"] = numbers((np.asarray(own.layers[UPPER]) - np.asarray(own.layers[LOWER])).mean(axis=0))
    return {"genes": ranked, "metrics": metrics, "by_section": {}}


_COLUMNS = {
    HELD_OUT_R: ("held-out r", "Pearson r on training spots that the model had not seen"),
    "mean": ("mean", "mean predicted expression over the places"),
    "sd": ("s.d.", "standard deviation of the predicted expression over the places"),
    "width": ("interval width", "mean width of the interval, on the scale of the expression"),
}


def _columns(predicted: AnnData) -> list[dict[str, str]]:
    there = _genes(predicted[:1], [str(gene) for gene in predicted.var_names])["metrics"]
    return [{"key": key, "label": label, "title": title} for key, (label, title) in _COLUMNS.items() if key in there]


def _glossary(predicted: AnnData) -> list[tuple[str, str]]:
    there = {column["key"] for column in _columns(predicted)}
    return [*(_COLUMNS[key] for key in _COLUMNS if key in there), *((w, words.OTHER[w]) for w in ("log1p", "spread"))]

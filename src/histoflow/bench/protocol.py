"""The protocol of an evaluation: everything that its figures depend on, as JSON that it can be run again from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from anndata import AnnData

from histoflow._errors import HistoflowError, MissingSlotError, ProtocolError
from histoflow._files import read_json, value_hash, write_json
from histoflow._keys import facts, section_name
from histoflow.bench.ceiling import CEILING_SEED
from histoflow.bench.folds import Areas, By, facts_of, sides_of
from histoflow.bench.parts import content_of
from histoflow.bench.plan import Plan
from histoflow.models import Auto, Estimator, from_options
from histoflow.models.spots import embedding_of
from histoflow.pp.expression import Panel
from histoflow.stats.ceiling import N_THINNINGS
from histoflow.stats.splits import Fold

PROTOCOL = "protocol.json"
_FORMAT = 1
_SOFTWARE = ("histoflow", "torch", "numpy", "scipy", "scikit-learn", "anndata", "pandas")
_IDS = ("patient", "block", "study", "order")


def describe(plan: Plan) -> dict[str, Any]:
    """Everything that the figures of a planned evaluation depend on, as JSON holds it.

    Parameters
    ----------
    plan
        From `make_plan`.

    Returns
    -------
    `dataset`, `by` (with `areas`), `sections` (ids, role and hashes of what is in them) and `cohort_hash`, a hash of
    it, `held_out`, `folds` (names, sections and numbers of spots of both sides, `shares`, the auditor's `findings`,
    `panel` with rule, hash and genes), `panel` as asked for, `normalize`, `min_counts`, `n_spots_left_out`, `missing`,
    `seeds`, `models` with options and what files they name hold, `embeddings`, `ceiling`, `versions`.
    """
    sections = _sections(plan.sections, plan.held_out)
    told = {
        "format": _FORMAT,
        "dataset": plan.dataset,
        "by": plan.level,
        "areas": asdict(plan.by) if isinstance(plan.by, Areas) else None,
        "cohort_hash": value_hash(sections)[:12],
        "sections": sections,
        "held_out": list(plan.held_out),
        "folds": [_fold(plan, fold, panel) for fold, panel in zip(plan.folds, plan.panels, strict=True)],
        "panel": _asked_panel(plan.asked_panel),
        "normalize": plan.normalize,
        "min_counts": plan.min_counts,
        "n_spots_left_out": plan.n_spots_left_out,
        "missing": plan.missing,
        "seeds": list(plan.seeds),
        "models": {name: _model(estimator) for name, estimator in plan.models.items()},
        "embeddings": embeddings_of(plan.sections, plan.models),
        "ceiling": {"seed": CEILING_SEED, "n_thinnings": N_THINNINGS, "how": "count thinning, an upper bound"},
        "versions": {"python": python_version()} | {name: version(name) for name in _SOFTWARE},
    }
    plain: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return plain


def write_protocol(plan: Plan, folder: Path) -> None:
    """Write the protocol of a planned evaluation beside its results, whole or not at all."""
    write_json(folder / PROTOCOL, describe(plan))


def read_protocol(path: str | Path) -> dict[str, Any]:
    """Read the protocol of an evaluation.

    Parameters
    ----------
    path
        The file, or the folder of the evaluation.

    Returns
    -------
    As `describe` made it.

    Raises
    ------
    ReadError
        If there is none, or it is no JSON.
    ProtocolError
        If it is no protocol, or of a newer version.
    """
    file = Path(path) / PROTOCOL if Path(path).is_dir() else Path(path)
    told = read_json(file)
    if not isinstance(told, dict) or told.get("format") != _FORMAT or not {"models", "folds"} <= set(told):
        found = told.get("format") if isinstance(told, dict) else None
        raise ProtocolError(
            f"{file} is not a protocol of format {_FORMAT} (format {found}); give the {PROTOCOL} of an evaluation, or "
            "update histoflow"
        )
    return told


def options_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `run` that a protocol states, models left out."""
    with _stated():
        panel = told["panel"]
        return {
            "by": _by(told),
            "panel": Panel(tuple(panel["genes"]), panel["rule"]) if "genes" in panel else int(panel["n_genes"]),
            "normalize": told["normalize"],
            "min_counts": int(told["min_counts"]),
            "seeds": tuple(int(seed) for seed in told["seeds"]),
        }


def models_of(told: Mapping[str, Any]) -> dict[str, Estimator | Auto]:
    """The estimators that a protocol states, not fitted; files of one's own machine are not in it.

    Raises
    ------
    OptionError
        If one is not known here.
    """
    with _stated():
        return {name: _made(stated) for name, stated in told["models"].items()}


@contextmanager
def _stated() -> Iterator[None]:
    """Say of a protocol that something in it is missing, or is not what `describe` writes."""
    try:
        yield
    except HistoflowError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as err:
        raise ProtocolError(
            f"the protocol was damaged or changed ({type(err).__name__}: {err}); give one that histoflow evaluate wrote"
        ) from err


def check_cohort(told: Mapping[str, Any], cohort: Sequence[AnnData]) -> None:
    """Refuse a cohort that is not the one of a protocol; embeddings are not looked at.

    Raises
    ------
    ProtocolError
        Naming the sections, and what of them differs.
    """
    held_out = tuple(getattr(cohort, "held_out_ids", ()))
    stated, found = told["sections"], _sections(list(cohort), held_out)
    differing = [f"section {name} is not in the cohort" for name in stated if name not in found]
    differing += [f"section {name} is not in the protocol" for name in found if name not in stated]
    for name in (name for name in stated if name in found):
        other = [what for what, value in stated[name].items() if found[name].get(what) != value]
        differing += [f"section {name} has other {', '.join(other)}"] if other else []
    missing = getattr(cohort, "missing", told["missing"])
    differing += [f"missing is {missing!r} and was {told['missing']!r}"] if missing != told["missing"] else []
    if differing:
        raise ProtocolError(
            f"the cohort is not the one of the protocol: {'; '.join(differing)}; give the same data, or evaluate anew"
        )


def check_models(told: Mapping[str, Any], cohort: Sequence[AnnData], models: Mapping[str, Estimator | Auto]) -> None:
    """Refuse models, or embeddings of a cohort, that are not those of a protocol.

    Raises
    ------
    ProtocolError
        Naming what differs.
    """
    scaled = {name: one.clone(normalize=told["normalize"]) for name, one in models.items()}
    given = json.loads(json.dumps({name: _model(one)["identity"] for name, one in scaled.items()}, default=str))
    stated = {name: one["identity"] for name, one in told["models"].items()}
    differing = [f"model {name}" for name in sorted({*given, *stated}) if given.get(name) != stated.get(name)]
    made = embeddings_of(list(cohort), models)
    asked = told["embeddings"].items()
    differing += [f"embeddings {slot}" for slot, one in asked if made.get(slot, {}).get("id") != one["id"]]
    if differing:
        raise ProtocolError(
            f"not those of the protocol: {', '.join(differing)}; use the same files, options and encoder, or evaluate "
            "anew"
        )


def embeddings_of(sections: Sequence[AnnData], models: Mapping[str, Estimator | Auto]) -> dict[str, Any]:
    """How the embeddings were made that these models look at, by slot; those of sections that have none left out."""
    nested = [[*m.candidates.values()] if isinstance(m, Auto) else [m] for m in models.values()]
    found = {}
    for slot in dict.fromkeys(one.slot for several in nested for one in several if one.slot):
        try:
            found[slot] = embedding_of(sections, slot)
        except MissingSlotError:
            continue
    return found


def _by(told: Mapping[str, Any]) -> By | str:
    return Areas(**told["areas"]) if told["areas"] else str(told["by"])


def _sections(sections: Sequence[AnnData], held_out: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ids, role and content of every section, by name."""
    return {section_name(section): _section(section, held_out) for section in sections}


def _section(section: AnnData, held_out: Sequence[str]) -> dict[str, Any]:
    known, content = facts_of(section), content_of(section)
    ids = {key: getattr(known, key) for key in _IDS}
    told = {key: content[key] for key in ("counts", "names", "places", "scale")}
    role = "held_out" if known.section in held_out else "reference"
    return {**ids, "role": role, "n_spots": section.n_obs, "slide": facts(section).get("slide_id"), **told}


def _fold(plan: Plan, fold: Fold, panel: Panel) -> dict[str, Any]:
    sides = sides_of(fold, plan.kept)
    names = [[section_name(section) for section in side] for side in sides]
    spots = [sum(section.n_obs for section in side) for side in sides]
    findings = [asdict(finding) for finding in plan.findings if finding.fold == fold.name]
    return {
        "name": fold.name,
        "train": names[0],
        "test": names[1],
        "n_train_spots": spots[0],
        "n_test_spots": spots[1],
        "shares": fold.shares,
        "findings": findings,
        "panel": {"rule": panel.rule, "hash": panel.hash, "genes": list(panel.genes)},
    }


def _asked_panel(panel: int | Panel) -> dict[str, Any]:
    if isinstance(panel, Panel):
        return {"rule": panel.rule, "hash": panel.hash, "genes": list(panel.genes)}
    return {"rule": "variance, in each fold from its training sections alone", "n_genes": int(panel)}


def _model(estimator: Estimator | Auto) -> dict[str, Any]:
    if isinstance(estimator, Auto):
        candidates = {name: _model(one) for name, one in estimator.candidates.items()}
        identity = {name: one["identity"] for name, one in candidates.items()}
        return {"estimator": Auto.name, "candidates": candidates, "level": estimator.level, "identity": identity}
    hidden = dict.fromkeys(estimator.local_options)
    identity = {key: value for key, value in estimator.identity().items() if key != "seed"}
    return {"estimator": estimator.name, "options": estimator.options() | hidden, "identity": identity}


def _made(stated: Mapping[str, Any]) -> Estimator | Auto:
    if stated["estimator"] == Auto.name:
        return Auto({name: _single(one) for name, one in stated["candidates"].items()}, stated["level"])
    return _single(stated)


def _single(stated: Mapping[str, Any]) -> Estimator:
    return from_options(stated["estimator"], stated["options"])

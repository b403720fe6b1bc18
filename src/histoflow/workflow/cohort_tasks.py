"""The tasks that a run over a cohort is made of, each from paths to one result: embed, predict, score. Thin."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from histoflow import bench, io, models
from histoflow._errors import ProtocolError
from histoflow._files import write_h5ad
from histoflow.pp import Panel
from histoflow.workflow.baselines import with_baselines
from histoflow.workflow.cohorts import chosen_encoder, embed_for, embed_row_for, embedder
from histoflow.workflow.evaluation import estimators_for, models_for
from histoflow.workflow.records import Task, fingerprints, finished, keep_record, row_of
from histoflow.workflow.zeroshot import predict_to_file

Facts = dict[str, Any]
"""What is told of a result: plain values."""


def perform(plain: dict[str, Any]) -> Facts:
    """Do one task, write its result whole or not at all, and then its record; gives the record."""
    task, start = Task(**plain), time.monotonic()
    if (record := finished(task)) is not None:  # of a worker that died after its last step
        return record
    inputs = fingerprints(task.row)
    told = _WORK[task.kind](task)
    return keep_record(task, inputs, told, time.monotonic() - start)


def forget() -> None:
    """Let go of the cohort that the parts of an evaluation share."""
    _planned.cache_clear()


def chosen_embedder(options: Mapping[str, Any], weights: str | None, device: str) -> Any:
    """The embedder of a task that embeds."""
    ready = chosen_encoder(options["encoder"], weights, amp=options["amp"])
    return embedder(ready, device=device)


def split_of(options: Mapping[str, Any]) -> Any:
    """What an evaluation holds out, as `bench.run` takes it."""
    return bench.Areas(buffer_um=options["buffer_um"]) if options["by"] == "area" else options["by"]


def scales_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an evaluation that say what is scored, on which scale."""
    genes = options["panel"]
    return {
        "by": split_of(options),
        "panel": genes if isinstance(genes, int) else Panel(tuple(genes)),
        "normalize": options["normalize"],
        "min_counts": options["min_counts"],
        "seeds": range(options["seeds"]),
    }


def chosen_models(
    cohort: io.Cohort, options: Mapping[str, Any], files: Mapping[str, Any]
) -> dict[str, models.Estimator | models.Auto]:
    """The estimators of an evaluation, the trivial baselines among them; the cohort is embedded for all of them."""
    chosen = models_for(cohort, options["models"], by=split_of(options), **_looks(options, files))
    chosen = with_baselines(cohort, chosen)
    embed_for(cohort, chosen.values())
    return chosen


def jobs_of(
    cohort: io.Cohort, chosen: dict[str, models.Estimator | models.Auto], options: Mapping[str, Any]
) -> dict[str, bench.Job]:
    """The jobs of an evaluation, by name."""
    jobs = bench.plan_jobs(cohort, chosen, **scales_of(options))
    return {f"{job.fold.name}-{job.model}-{job.estimator.seed}": job for job in jobs}


def _looks(options: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `models_for` that say what is looked through, by which estimators."""
    of_stpath = {name: options[name] for name in ("organ", "tech")}
    return {
        "encoder": chosen_encoder(options["encoder"], files["weights"], amp=options["amp"]),
        "normalize": options["normalize"],
        "level": options["level"],
        "of_stpath": of_stpath | {"weights": files["stpath_weights"], "vocabulary": files["vocabulary"]},
    }


def _embed(task: Task) -> Facts:
    """The section with its embeddings, or of a slide without counts the tiles with theirs."""
    row = row_of(task.row)
    make = chosen_embedder(task.options, task.arguments["weights"], task.arguments["device"])
    if row.kind == "slide":
        made = make.tiles(io.open_wsi(str(row.slide), mpp=row.mpp), task.options["step_um"])
    else:
        section = io.Cohort([row])[0]
        made = make.section(section, io.open_section_slide(section))
    write_h5ad(made, task.target)
    return {"n_places": made.n_obs, "n_features": int(made.obsm[make.slot].shape[1])}


def _predict(task: Task) -> Facts:
    """The prediction of a section or a slide."""
    fitted = models.load(task.arguments["model"])
    how = {"weights": task.arguments["weights"], "device": task.arguments["device"]}
    place = embed_row_for(fitted, io.Cohort([row_of(task.row)]), task.name, at=task.options["at"], **how)
    n_places, n_genes = predict_to_file(fitted, place, task.target, n_samples=task.options["samples"])
    return {"n_places": n_places, "n_genes": n_genes}


def _prepare(task: Task) -> Facts:
    """The embeddings in the cache that an evaluation needs of one section."""
    one = io.Cohort([row_of(task.row)])
    chosen = estimators_for(one, task.options["models"], **_looks(task.options, task.arguments))
    embed_for(one, with_baselines(one, chosen).values())
    return {"n_places": one[0].n_obs}


def _score(task: Task) -> Facts:
    """One part of an evaluation: an estimator on one fold."""
    job = _planned(json.dumps(task.arguments, sort_keys=True)).get(task.name)
    if job is None or job.key() != task.options["part"]:
        raise ProtocolError(
            f"part {task.name} is another one on this worker: its files, its encoder or its versions differ from those "
            "of the process that planned it; let both see the same"
        )
    return {"n_rows": len(bench.run_job(job, task.out))}


@lru_cache(maxsize=1)
def _planned(told: str) -> dict[str, bench.Job]:
    """The jobs of an evaluation, kept for the next part; `told` states the files as they are."""
    arguments = json.loads(told)
    rows = [row_of(row) for row in arguments["rows"]]
    cohort = io.Cohort(rows, name=arguments["name"], missing=arguments["options"]["missing"])
    return jobs_of(cohort, chosen_models(cohort, arguments["options"], arguments["files"]), arguments["options"])


_WORK: Mapping[str, Callable[[Task], Facts]] = {
    "embed": _embed,
    "predict": _predict,
    "prepare": _prepare,
    "evaluate": _score,
}

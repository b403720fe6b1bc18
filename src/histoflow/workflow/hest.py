"""The HEST-Benchmark from its folder to the leaderboard's table. Thin: the work is below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow import bench, io
from histoflow._errors import ResolutionError
from histoflow._files import atomic_path
from histoflow._keys import EMBEDDINGS, SPATIAL_UM, UNS
from histoflow.models import Estimator, RidgeProbe
from histoflow.models.inner import LEAST_SECTIONS
from histoflow.pp import Encoder, Panel, embed_patches, get_encoder
from histoflow.workflow.tables import write_csv

_RESULTS, _LEADERBOARD = "results.parquet", "leaderboard.csv"


def hest_bench(
    folder: str | Path,
    out: str | Path,
    *,
    encoder: str | Encoder = "scatter",
    weights: str | Path | None = None,
    estimators: Mapping[str, Estimator] | None = None,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Run the public benchmark's folder: embed its patches, fit on every fold, score as the leaderboard does.

    Embeddings are of single patches, as the benchmark's are: neither a wider field of view nor context, for which there
    is no slide. Expression is log1p of raw counts, as the benchmark's is.

    Parameters
    ----------
    folder
        A folder of tasks, or one task itself; see `io.read_hest_bench`.
    out
        Folder of ``results.parquet``, ``leaderboard.csv``, models and predictions; a later run takes up what is
        finished there, one model on one fold at a time.
    encoder
        What describes a patch: an encoder, or the name of one, as `pp.get_encoder` takes it.
    weights
        Its weights as a local file; None for where it finds them itself.
    estimators
        By the name they have in the table; None for `bench.hest_models`: ``hest_fm`` in both protocols, and ``stflow``.
    tasks
        Names of the tasks wanted; None for all.
    seed
        Of the estimators.
    cache_dir
        Cache folder of the embeddings; None for the default.

    Returns
    -------
    The long table of `bench.run_hest_task`, task below task; `bench.hest_leaderboard` averages it.

    Raises
    ------
    ReadError
        If a file of the benchmark is missing or damaged: which.
    ResolutionError
        If a model needs places in µm and nothing tells the size of a pixel.
    OptionError, SplitError, PanelMismatchError, CountsError
        As `io.read_hest_bench` and `io.hest_section` say.

    Examples
    --------
    >>> table = hest_bench("hest-bench/", "out/", encoder="uni", tasks=["IDC"])  # doctest: +SKIP
    """
    found = io.read_hest_bench(folder, tasks)
    ready = encoder if isinstance(encoder, Encoder) else get_encoder(encoder, weights=weights, cache_dir=cache_dir)
    chosen = bench.hest_models(encoder=ready.name, seed=seed) if estimators is None else estimators
    parts = []
    for task in found:
        sections = {name: _section(task, name, ready, cache_dir) for name in task.samples}
        for name, estimator in chosen.items():
            _check_scale(task, sections, name, estimator)
        about = {"panel": Panel(task.genes), "models": chosen, "seed": seed, "out": out}
        parts.append(bench.run_hest_task(task.name, sections, task.folds, **about))  # type: ignore[arg-type]
    table = pd.concat(parts, ignore_index=True)
    with atomic_path(Path(out) / _RESULTS) as temporary:
        table.to_parquet(temporary, index=False)
    write_csv(Path(out) / _LEADERBOARD, bench.hest_leaderboard(table))
    return table


def _section(task: io.HestTask, name: str, encoder: Encoder, cache_dir: str | Path | None) -> AnnData:
    """One sample, joined and embedded."""
    sample = task.samples[name]
    with io.open_hest_patches(sample.patches) as patches:
        section = io.hest_section(sample, patches, task.genes)
        features, made = embed_patches(
            patches.images, encoder, content_id=patches.content_id(), patch_um=io.PATCH_UM, cache_dir=cache_dir
        )
    section.obsm[encoder.name] = features[section.obs["patch"]]
    section.uns[UNS][EMBEDDINGS] = {encoder.name: made}
    return section


def _check_scale(task: io.HestTask, sections: Mapping[str, AnnData], name: str, estimator: Estimator) -> None:
    """Refuse a model that needs places in µm of samples that have none, before anything is fitted."""
    for train, test in task.folds:
        needs = _needs_places(estimator, len(train))
        unknown = [sample for sample in (*train, *test) if needs and np.isnan(sections[sample].obsm[SPATIAL_UM]).any()]
        if unknown:
            paths = f"{task.samples[unknown[0]].patches} (sample {unknown[0]}, and {len(unknown) - 1} more)"
            raise ResolutionError(
                f"{name} needs places in µm, and nothing tells the pixel size of {paths}; write "
                f'{{"pixel_size_um_estimated": …}}, as the data set\'s metadata have it, into '
                f"{task.folder / 'metadata' / unknown[0]}.json, or leave {name} out (hest_fm-hest needs no scale)"
            )


def _needs_places(estimator: Estimator, n_train: int) -> bool:
    """Whether it looks at neighbours, or holds out spatial blocks for want of sections."""
    if not isinstance(estimator, RidgeProbe):
        return True
    grouped = estimator.protocol != "hest"
    return estimator.smooth_um is not None or (grouped and n_train < LEAST_SECTIONS)

"""Targets: one for each reader, with its seeds; what it gives back is checked to be what the reader promises."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from fuzz import seeds
from fuzz.mutate import Case
from histoflow._errors import HistoflowError, ManifestError


def same(case: Case) -> Case:
    """The case itself."""
    return case


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes
    ----------
    name
        What the command line calls it.
    seeds
        Makes its seed inputs.
    read
        Reads a folder with the files of an input.
    share
        How many inputs it gets of a run over all readers, in parts.
    repair
        Makes checksums right again after a mutation, so that what lies behind them is met.
    """

    name: str
    seeds: Callable[[], Iterable[Case]]
    read: Callable[[Path], object]
    share: float = 1.0
    repair: Callable[[Case], Case] = same


def check_section(section: Any) -> None:
    """What every section promises: counts that are counts, unique names, places that are numbers."""
    values = section.X.data if sp.issparse(section.X) else np.zeros(1)  # without counts there is no X
    assert section.n_obs > 0, "a section without spots"
    assert section.obs_names.is_unique, "ids of spots come more than once"
    assert section.var_names.is_unique, "names of genes come more than once"
    assert np.isfinite(values).all(), "counts that are no numbers"
    assert (values >= 0).all(), "negative counts"
    assert np.isfinite(section.obsm["spatial"]).all(), "places that are no numbers"
    assert section.obsm["spatial"].shape == (section.n_obs, 2), "places of another shape"
    known = section.uns["histoflow"]
    assert all(0.01 < known[axis] < 100 for axis in ("mpp_x", "mpp_y")), "a scale that is none"
    assert np.isfinite(section.obsm["spatial_um"]).all(), "places in µm that are no numbers"


def _first(folder: Path, *names: str) -> Path:
    """The first of these files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _slide(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("slide.*"))), None)


def _visium(folder: Path) -> None:
    from histoflow import io

    if (folder / "square").is_dir():
        check_section(io.read_visium_hd(folder / "square", slide=_slide(folder)))
    else:
        check_section(io.read_visium(folder / "outs", slide=_slide(folder)))


def _st(folder: Path) -> None:
    from histoflow import io

    counts = _first(folder, "counts.tsv", "counts.tsv.gz", "counts.csv")
    check_section(io.read_st(counts, _first(folder, "spots.tsv", "spots.csv"), folder / "slide.png"))


def _manifest(folder: Path) -> None:
    from histoflow import io

    path = _first(folder, "cohort.csv", "cohort.tsv")
    cohort = io.read_cohort(path, check_files=False)
    assert len(set(cohort.section_ids)) == len(cohort.section_ids), "ids of sections come more than once"
    for row in cohort.rows:
        assert row.mpp is None or np.isfinite(row.mpp).all(), "a scale that is no number"
    with contextlib.suppress(ManifestError):
        io.read_cohort(path)


def _h5ad(folder: Path) -> None:
    from histoflow import io
    from histoflow.workflow.reports import read_predicted

    if (folder / "predicted.h5ad").is_file():
        read_predicted(folder / "predicted.h5ad")
        return
    row = io.Row(section="S1", kind="h5ad", counts=folder / "counts.h5ad", slide=folder / "slide.png", mpp=10.0)
    check_section(io.Cohort([row])[0])


def _features(folder: Path) -> None:
    from histoflow import io

    counts = folder / "counts.h5ad"
    section = io.read_features(
        folder / "patches.h5", encoder="uni", mpp=1.0, patch_um=112.0, counts=counts if counts.is_file() else None
    )
    assert np.isfinite(section.obsm["uni"]).all(), "features that are no numbers"
    check_section(section)


def _hest_bench(folder: Path) -> None:
    from histoflow import io

    for task in io.read_hest_bench(folder):
        for sample in task.samples.values():
            with io.open_hest_patches(sample.patches) as patches:
                assert patches.images[:2].dtype == np.uint8, "patches that are no picture"
                section = io.hest_section(sample, patches, task.genes)
                assert np.isfinite(section.obsm["spatial"]).all(), "places that are no numbers"


def _model(folder: Path) -> None:
    from histoflow import models

    loaded = models.load(folder / "model")
    assert loaded.panel_ is not None, "a model without a panel"
    assert len(loaded.panel_) > 0, "a model with an empty panel"


def _with_right_hashes(case: Case) -> Case:
    """A model whose hashes are those of its changed files, in three cases of four."""
    names = [name for name in case if name.endswith("model.json")]
    weights = case.get("model/weights.safetensors")
    if not names or weights is None or hashlib.sha256(weights).digest()[0] % 4 == 0:
        return case
    from histoflow.models.storage import sealed

    try:
        described = json.loads(case[names[0]])
        return case | {names[0]: json.dumps(sealed(described, hashlib.sha256(weights).hexdigest())).encode()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return case


def _weights(folder: Path) -> None:
    from histoflow.pp.encoders.weights import is_program, kind_of, path_hash, read_state

    path = _first(folder, "weights.pth", "weights.bin", "model.safetensors")
    kind_of(path)
    is_program(path)
    path_hash(path)
    read_state(path)


def _zarr(folder: Path) -> None:
    from histoflow.io import SuperPixels

    made = SuperPixels(folder / "cells.zarr").anndata()
    assert made.X.shape == (made.n_obs, made.n_vars), "values of another shape"


def _archive(folder: Path) -> None:
    from histoflow.datasets.remote import _unpack

    (folder / "data").mkdir()
    _unpack(folder / "spatial.tar.gz", folder / "data" / "spatial")


def _geojson(folder: Path) -> None:
    from histoflow.io import read_polygons

    assert read_polygons(folder / "regions.geojson").is_valid, "a region that is none"


def _genes(folder: Path) -> None:
    from histoflow.cli.root import genes_of, panel_of

    path = str(folder / "genes.txt")
    with contextlib.suppress(HistoflowError):
        assert genes_of(path) is not None, "no genes of a file that is there"
    panel_of(path)


def _vocabulary(folder: Path) -> None:
    from histoflow.models.stpath_vocabulary import GeneVocabulary

    read = GeneVocabulary.read(folder / "symbol2ensembl.json")
    assert read.n_tokens == len(read.genes) + 2, "tokens that are not those of the genes"
    read.tokens(["KRT8"])


def _picture(folder: Path) -> None:
    from histoflow import io

    path = _first(folder, "slide.png", "slide.jpg", "slide.bmp", "slide.tif")
    io.open_wsi(path, mpp=1.0).close()


def _protocol(folder: Path) -> None:
    from histoflow.bench import protocol

    told = protocol.read_protocol(folder)
    protocol.options_of(told)
    protocol.models_of(told)


TARGETS = {
    target.name: target
    for target in (
        Target("visium", lambda: (*seeds.visium(), *seeds.visium_hd()), _visium),
        Target("st", seeds.st_tables, _st),
        Target("manifest", seeds.manifests, _manifest, share=8.0),
        Target("h5ad", lambda: (*seeds.h5ads(), *seeds.predictions()), _h5ad),
        Target("features", seeds.features, _features),
        Target("hest_bench", seeds.hest_bench, _hest_bench),
        Target("model", seeds.model_folders, _model, repair=_with_right_hashes),
        Target("pth", seeds.pth_files, _weights, share=1.5),
        Target("safetensors", seeds.safetensors_files, _weights, share=4.0),
        Target("zarr", seeds.zarrs, _zarr),
        Target("archive", seeds.archives, _archive),
        Target("geojson", seeds.geojsons, _geojson, share=7.5),
        Target("genes", seeds.gene_lists, _genes, share=8.0),
        Target("vocabulary", seeds.vocabularies, _vocabulary, share=8.0),
        Target("picture", seeds.pictures, _picture),
        Target("protocol", seeds.protocols, _protocol, share=4.0),
    )
}

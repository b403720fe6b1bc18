"""Predictions without references: the pretrained model, and predictions too large to hold at once. Thin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anndata import AnnData

from histoflow import models
from histoflow._errors import OptionError
from histoflow._files import atomic_path, write_h5ad
from histoflow._progress import track
from histoflow.pp import Panel
from histoflow.workflow.streaming import stream_zarr, write_zarr

_CHUNK = 1 << 18
"""Numbers in one chunk of a zarr, about a megabyte: all spots of a few genes, so that one gene is read alone."""
_GENES_AT_ONCE = 256


def zero_shot(
    weights: str | Path | None,
    *,
    vocabulary: str | Path | None = None,
    organ: str | None = None,
    tech: str = "Visium",
    genes: Sequence[str] | None = None,
    device: str = "cpu",
) -> models.STPathZeroShot:
    """Make the pretrained model ready to predict; nothing is trained or downloaded.

    Parameters
    ----------
    weights, vocabulary, organ, tech, device
        As in `models.STPathZeroShot`.
    genes
        Which to predict, by symbol or Ensembl id; None for every gene of the vocabulary, by Ensembl id.

    Returns
    -------
    The estimator, fitted on no section.

    Raises
    ------
    OptionError
        If organ or technology are not in the lists.
    WeightsError
        If weights or vocabulary are missing, damaged, or do not belong together.
    PanelMismatchError
        If the vocabulary lacks a gene.
    """
    model = models.STPathZeroShot(weights, vocabulary, organ=organ, tech=tech, device=device)
    return model.fit([], panel=model.all_genes() if genes is None else Panel(tuple(genes)))


def tell_stpath(chosen: dict[str, models.Estimator | models.Auto], options: Mapping[str, Any]) -> None:
    """Tell the pretrained model, where it is among the chosen ones, what it has to know; refuse such options elsewhere.

    Parameters
    ----------
    chosen
        Estimators by name; the pretrained one is replaced.
    options
        Options of `models.STPathZeroShot`; None where one is not given.

    Raises
    ------
    OptionError
        If there is an option and no pretrained model, or it has no organ.
    WeightsError
        If its weights or vocabulary are missing.
    """
    given = {name: str(value) for name, value in options.items() if value is not None}
    asked = chosen.get(models.STPathZeroShot.name)
    if isinstance(asked, models.STPathZeroShot):
        told = asked.clone(**given)
        told.check()
        chosen[told.name] = told
    elif given:
        raise OptionError(f"{', '.join(given)}: meant for stpath, which is not among the models; leave it out")


def predict_to_file(
    model: models.Estimator, section: AnnData, out: str | Path, *, n_samples: int = 16
) -> tuple[int, int]:
    """Predict an embedded section into a file, whole or not at all.

    Parameters
    ----------
    model
        A fitted estimator.
    section
        As in `Estimator.predict`; `embed_spots_for` and `embed_tiles_for` make it.
    out
        A name that ends in ``.zarr`` makes a zarr, which `anndata.read_zarr` reads, in chunks. Spots × genes are never
        held at once: the flow, ridges and baselines write it spots by spots, the pretrained model genes by genes; only
        super-pixel models and ridges that are smoothed predict all of it first. Any other name makes an h5ad.
    n_samples
        As in `Estimator.predict`.

    Returns
    -------
    How many spots and genes.

    Raises
    ------
    MissingDependencyError
        If zarr is not installed and asked for.
    OutputError
        If it cannot be written.
    """
    of_zarr = Path(out).suffix.lower() == ".zarr"
    if of_zarr and isinstance(model, models.STPathZeroShot):
        return _stream(model, section, Path(out))
    if of_zarr and model.in_parts:
        return stream_zarr(model, section, Path(out), n_samples=n_samples)
    predicted = model.predict(section, n_samples=n_samples)
    if of_zarr:
        with atomic_path(out) as temporary:
            write_zarr(predicted, temporary)
    else:
        write_h5ad(predicted, out)
    return predicted.n_obs, predicted.n_vars


def _stream(model: models.STPathZeroShot, section: AnnData, out: Path) -> tuple[int, int]:
    """Write a prediction some genes at a time."""
    per_chunk = max(1, _CHUNK // section.n_obs)
    n_genes = per_chunk * -(-_GENES_AT_ONCE // per_chunk)
    frame, columns = model.predict_streamed(section, n_genes=n_genes)
    with atomic_path(out) as temporary:
        root = write_zarr(frame, temporary)
        x = root.create_array("X", shape=frame.shape, chunks=(frame.n_obs, per_chunk), dtype="float32")
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})  # what anndata reads
        for start, part in zip(track(range(0, frame.n_vars, n_genes), "genes"), columns, strict=True):
            x[:, start : start + part.shape[1]] = part
    return frame.n_obs, frame.n_vars

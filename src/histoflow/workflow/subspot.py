"""Super-resolution: a slide, or a section with its counts, becomes super-pixels, window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from histoflow import io, models
from histoflow._errors import EncoderMismatchError, MissingSlotError, NotFittedError, OptionError, PanelMismatchError
from histoflow._files import atomic_path, cache_folder, scratch_folder, write_h5ad
from histoflow._keys import SPATIAL, UNS, facts, section_name
from histoflow._progress import track
from histoflow.io.superpixels import SPOTS, TISSUE, Canvas, SuperPixels, check_budget, create_superpixels
from histoflow.models.measured import Measurement, fit_measurement
from histoflow.pp import DenseEmbedder, DenseMap, Lattice, Panel, choose_panel
from histoflow.pp.encoders.dense import SUPERPIXEL_UM
from histoflow.pp.expression import panel_log1p
from histoflow.pp.lattice import WINDOW, Window, n_superpixels_of, spot_um_of
from histoflow.pp.tiles import slide_facts, tissue_outlines
from histoflow.workflow.cohorts import superpixel_embedder
from histoflow.workflow.slides import embedded

if TYPE_CHECKING:
    from wsidata import WSIData

Floats = NDArray[np.floating[Any]]

FACTORS = (1, 2, 4, 8)
"""Super-pixels along 64 µm that are offered."""
_N_GENES = 50
_SPOTS_AT_ONCE = 64
_SCALES = {"library": "counts per 10,000 of a spot, per super-pixel", "none": "counts of a spot, per super-pixel"}


@overload
def super_resolve(
    adata: AnnData | WSIData,
    *,
    wsi: WSIData | None = None,
    method: str = "istar",
    model: models.SubspotRegressor | None = None,
    genes: Sequence[str] | None = None,
    factor: int = 8,
    out: None = None,
    cache_dir: str | Path | None = None,
) -> AnnData: ...


@overload
def super_resolve(
    adata: AnnData | WSIData,
    *,
    wsi: WSIData | None = None,
    method: str = "istar",
    model: models.SubspotRegressor | None = None,
    genes: Sequence[str] | None = None,
    factor: int = 8,
    out: str | Path,
    cache_dir: str | Path | None = None,
) -> SuperPixels: ...


def super_resolve(
    adata: AnnData | WSIData,
    *,
    wsi: WSIData | None = None,
    method: str = "istar",
    model: models.SubspotRegressor | None = None,
    genes: Sequence[str] | None = None,
    factor: int = 8,
    out: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> AnnData | SuperPixels:
    """Resolve the spots of a section, or a slide without counts, into super-pixels.

    Of a section with counts the result agrees with them: between spots by a ratio of measured to predicted expression
    that near and similar places share, as far as leaving out spots tells; and within every spot exactly, the sum over
    its super-pixels being what was measured. Of a slide, or a section without counts, the sum over the super-pixels of
    a place is what `SubspotRegressor.predict` says of a spot there. The slide is read window by window: memory does
    not follow its size.

    Parameters
    ----------
    adata
        A section, or a Visium AnnData that `section_from_anndata` takes; or an opened slide, which needs `model`.
    wsi
        The slide of the section; None for the one it records.
    method
        ``"istar"``.
    model
        A `models.SubspotRegressor`; one that is not fitted is fitted on the section. None for the default one.
    genes
        Which genes; None for all of the model's panel, or, where it is not fitted, for 50 by variance.
    factor
        Super-pixels along 64 µm, about the width of a Visium spot: 8 for squares of 8 µm, 4 for 16 µm, 2 for 32 µm,
        1 for 64 µm. The shares of smaller ones add up to those of a larger one.
    out
        Folder to write, a SpatialData zarr chunked by gene; None for a result in memory alone, of at most 1 GiB.
    cache_dir
        Cache folder; None for the default.

    Returns
    -------
    Without `out` an AnnData, one row per super-pixel on tissue, as `io.SuperPixels.anndata` describes it: X the share
    of a spot's counts (per 10,000 where the model's scale is ``"library"``) that falls on a super-pixel,
    ``layers["std"]`` the spread of the ensemble, ``obsm["spatial"]`` level-0 pixels. With `out` an `io.SuperPixels`,
    which reads them back.

    Raises
    ------
    OptionError
        If method or factor is not offered, a slide comes without a model, or the result is too large for memory.
    MissingSlotError
        If the section records no slide and none is given.
    EncoderMismatchError
        If the model was trained on super-pixels made another way.
    PanelMismatchError
        If the section or the model lacks a gene.

    Examples
    --------
    >>> cells = super_resolve(section, wsi=wsi)  # doctest: +SKIP
    """
    if method != models.SubspotRegressor.name:
        raise OptionError(f"method must be {models.SubspotRegressor.name}, got {method!r}")
    estimator = _resolver(model or models.SubspotRegressor())
    make = dense_embedder(estimator, cache_dir=cache_dir)
    if not isinstance(adata, AnnData):
        if model is None or wsi is not None:
            raise OptionError("a slide without counts needs model=, a fitted SubspotRegressor, and no other wsi=")
        return _resolved(Job(estimator, make, adata, genes=genes, factor=factor), out)
    section = embedded(adata, wsi, make)
    if estimator.panel_ is None:
        estimator = estimator.clone().fit([section], panel=_panel(section, genes, estimator))
    slide = wsi or io.open_section_slide(section, cache_dir=cache_dir)
    return _resolved(Job(estimator, make, slide, section, section.n_vars > 0, genes, factor), out)


def _panel(section: AnnData, genes: Sequence[str] | None, estimator: models.Estimator) -> Panel:
    return choose_panel([section], _N_GENES, normalize=estimator.normalize) if genes is None else Panel(tuple(genes))


def resolve(
    model: models.Estimator,
    wsi: WSIData,
    out: str | Path,
    *,
    spots: AnnData | None = None,
    with_counts: bool = False,
    genes: Sequence[str] | None = None,
    factor: int = 8,
    weights: str | Path | None = None,
) -> dict[str, Any]:
    """Resolve a slide with a fitted model into a folder or a file.

    Parameters
    ----------
    model
        A fitted `models.SubspotRegressor`.
    wsi
        The slide.
    out
        Folder ``.zarr``, written window by window; or file ``.h5ad`` of an AnnData, made in memory.
    spots
        The section whose spots lie on the slide: it is drawn which super-pixels belong to which spot.
    with_counts
        Whether the result shall agree with the counts of `spots`; otherwise they are not read.
    genes, factor
        As in `super_resolve`.
    weights
        Weights of the model's encoder as a local file; None for where it finds them itself.

    Returns
    -------
    What is stored with the result: scale, panel, size of the super-pixels.

    Raises
    ------
    OptionError, EncoderMismatchError, PanelMismatchError
        As `super_resolve`.
    """
    resolver = _resolver(model)
    make = dense_embedder(resolver, weights=weights)
    job = Job(resolver, make, wsi, spots, with_counts, genes, factor)
    if Path(out).suffix != ".h5ad":
        return write_superpixels(job, out).facts
    made = _in_memory(job)
    write_h5ad(made, out)
    return facts(made)


def dense_embedder(
    model: models.Estimator, *, weights: str | Path | None = None, cache_dir: str | Path | None = None
) -> DenseEmbedder:
    """Make what describes super-pixels the way of a model's training sections.

    Parameters
    ----------
    model
        A `models.SubspotRegressor`, fitted or not.
    weights
        Weights of its encoder as a local file; None for where it finds them itself.
    cache_dir
        Cache folder; None for the default.

    Raises
    ------
    OptionError
        If the model knows no super-pixels.
    EncoderMismatchError
        If the encoder at hand makes them another way than the model's.
    """
    model = _resolver(model)
    made = model.embedding_
    make = superpixel_embedder(str(model.encoder), weights=weights, cache_dir=cache_dir, of_model=made is not None)
    if made is not None and make.facts()["id"] != made["id"]:
        now = make.facts()
        differing = [key for key in made if key not in ("id", "licence") and made[key] != now.get(key)]
        told = "; ".join(f"{key} {now.get(key)}, the model {made[key]}" for key in differing)
        raise EncoderMismatchError(f"super-pixels are made another way here than for the model: {told}; fit it anew")
    return make


def _resolver(model: models.Estimator) -> models.SubspotRegressor:
    """The model, or the one inside of a calibrated one, which has to know super-pixels."""
    resolver = model.inside
    if not isinstance(resolver, models.SubspotRegressor):
        raise OptionError(f"model is {model.method}, which knows no super-pixels; fit istar")
    return resolver


@dataclass(frozen=True)
class Job:
    """One slide to resolve by a fitted model.

    Attributes
    ----------
    model
        Fitted.
    make
        What describes its super-pixels.
    wsi
        The slide.
    section
        Its spots, where they are known.
    measured
        Whether the result shall agree with the counts of `section`.
    genes
        Which genes of the panel; None for all.
    factor
        Super-pixels along 64 µm.
    """

    model: models.SubspotRegressor
    make: DenseEmbedder
    wsi: WSIData
    section: AnnData | None = None
    measured: bool = False
    genes: Sequence[str] | None = None
    factor: int = 8

    def __post_init__(self) -> None:
        """Refuse a factor or genes that are not offered."""
        if self.factor not in FACTORS:
            raise OptionError(f"factor is {self.factor}; choose one of {', '.join(map(str, FACTORS))}")
        known = self.panel.genes
        if unknown := [gene for gene in self.genes or () if gene not in known]:
            raise PanelMismatchError(f"the model knows no {', '.join(unknown[:5])}; its panel has {len(known)} genes")

    @property
    def panel(self) -> Panel:
        """The panel of the model."""
        if self.model.panel_ is None:
            raise NotFittedError("SubspotRegressor is not fitted; call fit first")
        return self.model.panel_

    @property
    def chosen(self) -> tuple[str, ...]:
        """The genes of the result."""
        return self.panel.genes if self.genes is None else tuple(self.genes)


def _resolved(job: Job, out: str | Path | None) -> AnnData | SuperPixels:
    return _in_memory(job) if out is None else write_superpixels(job, out)


def _in_memory(job: Job) -> AnnData:
    """Resolve a slide into a folder that is gone afterwards; refused first where memory would not hold it."""
    lattice = Lattice.of(job.wsi)
    on_tissue = lattice.inside(tissue_outlines(job.wsi, drawn=True)).sum() * (job.factor / max(FACTORS)) ** 2
    check_budget(int(on_tissue), len(job.chosen))
    with scratch_folder(cache_folder(job.make.cache_dir) / "superpixels") as temporary:
        return write_superpixels(job, temporary / "superpixels.zarr").anndata()


def write_superpixels(job: Job, out: str | Path) -> SuperPixels:
    """Resolve a slide into a folder, window by window; it is there once everything is written.

    Raises
    ------
    SlideMismatchError
        If no tissue is found on the slide.
    OutputError
        If the folder cannot be written.
    """
    drawing = _Drawing.of(job)
    with atomic_path(out) as temporary:
        store = create_superpixels(temporary, drawing.canvas, job.chosen, drawing.facts(), drawing.spot_names)
        windows = [window for window in drawing.map.lattice.windows(WINDOW) if drawing.mask[window].any()]
        for window in track(windows, "super-resolving"):
            drawing.draw(window, store)
    return SuperPixels(Path(out))


@dataclass(frozen=True)
class _Drawing:
    """Everything that is known before the first window is drawn.

    `mask` says which super-pixels are drawn; `spots`, (rows, columns), which spot each belongs to, from 1, and 0 for
    none; `n_superpixels` how many make a spot.
    """

    job: Job
    map: DenseMap
    mask: NDArray[np.bool_]
    spots: NDArray[np.int32]
    n_superpixels: int
    measurement: Measurement | None

    @classmethod
    def of(cls, job: Job) -> _Drawing:
        """Describe the slide's super-pixels, and bring in the spots."""
        lattice = Lattice.of(job.wsi)
        mask = lattice.inside(tissue_outlines(job.wsi, drawn=True))
        spots = np.zeros(lattice.shape, dtype=np.int32)
        if job.section is None:
            dense = job.make.map(job.wsi, np.flatnonzero(mask))
            return cls(job, dense, mask, spots, job.model.n_superpixels_, None)
        n_superpixels = n_superpixels_of(spot_um_of(job.section))
        cells = lattice.nearest(job.section.obsm[SPATIAL], n_superpixels)
        mask.flat[cells.ravel()] = True
        spots.flat[cells.ravel()] = np.repeat(np.arange(1, len(cells) + 1), n_superpixels)
        dense = job.make.map(job.wsi, np.flatnonzero(mask))
        agreed = _measurement(job, job.section, dense, cells) if job.measured else None
        return cls(job, dense, mask, spots, n_superpixels, agreed)

    @property
    def step(self) -> int:
        """Super-pixels of 8 µm along one of the result."""
        return max(FACTORS) // self.job.factor

    @property
    def canvas(self) -> Canvas:
        """Where the super-pixels of the result lie."""
        um = SUPERPIXEL_UM * self.step
        rows, columns = (-(-length // self.step) for length in self.map.lattice.shape)
        mpp_x, mpp_y = self.map.lattice.mpp
        return Canvas((rows, columns), (um / mpp_x, um / mpp_y), um, WINDOW // self.step)

    @property
    def spot_names(self) -> list[str] | None:
        """Names of the spots, where super-pixels are small enough to belong to one."""
        if self.job.section is None or self.step > 1:
            return None
        return [str(name) for name in self.job.section.obs_names]

    def facts(self) -> dict[str, Any]:
        """What is stored with the result."""
        job, model = self.job, self.job.model
        known: Mapping[str, Any] = slide_facts(job.wsi) if job.section is None else facts(job.section)
        kept = ("section", "slide", "slide_id", "slide_size_px", "mpp_x", "mpp_y", "mpp_source")
        return {key: _plain(known[key]) for key in kept if key in known} | {
            "kind": "superpixels",
            "method": model.name,
            "scale": _SCALES[model.normalize],
            "normalize": model.normalize,
            "factor": job.factor,
            "n_superpixels": self.n_superpixels / self.step**2,
            "agrees_with": "prediction" if self.measurement is None else "measured spots",
            "embedding": model.embedding_ or {},
            "panel_hash": self.job.panel.hash,
            "seed": model.seed,
            "trained_on": list(model.training_.get("sections", [])),
        }

    def draw(self, window: Window, store: SuperPixels) -> None:
        """Predict a window and write it."""
        mask = self.mask[window]
        shares = self._shares(window, mask)
        # The ensemble's mean is drawn, and how far its members differ.
        mean = shares.mean(axis=0, dtype=np.float64)
        std = shares.std(axis=0, ddof=1, dtype=np.float64) if len(shares) > 1 else np.zeros_like(mean)
        labels = {TISSUE: _summed(mask[None].astype(np.float32), self.step)[0] > 0}
        if self.spot_names is not None:
            labels[SPOTS] = self.spots[window]
        rows, columns = (slice(part.start // self.step, -(-part.stop // self.step)) for part in window)
        drawn, spread = (np.moveaxis(part, -1, 0).astype(np.float32) for part in (mean, std))
        store.write((rows, columns), drawn, spread, labels)

    def _shares(self, window: Window, mask: NDArray[np.bool_]) -> Floats:
        """Shares of a spot's counts on every super-pixel of the result: (n_members, height, width, n_genes)."""
        cells = np.flatnonzero(mask)
        rows, columns = np.divmod(cells, mask.shape[1])
        flat = (rows + window[0].start) * self.map.lattice.shape[1] + columns + window[1].start
        features = self.map.features(window)[mask]
        counts = self.job.model.superpixels(features)
        if self.measurement is not None:
            counts = _agreeing(counts, self.measurement, flat, features)
        genes = [self.job.panel.genes.index(gene) for gene in self.job.chosen]
        drawn = np.zeros((len(counts), *mask.shape, len(genes)), dtype=np.float32)
        drawn[:, rows, columns] = counts[..., genes] / self.n_superpixels
        return np.stack([np.moveaxis(_summed(np.moveaxis(part, -1, 0), self.step), 0, -1) for part in drawn])


def _plain(value: Any) -> Any:
    """A value as JSON holds it; files give numpy's own types back."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _measurement(job: Job, section: AnnData, dense: DenseMap, cells: NDArray[np.intp]) -> Measurement:
    """What the counts of a section say beyond its image."""
    measured = panel_log1p(section, job.panel, job.model.normalize)
    predicted = np.empty((*cells.shape, len(job.panel)), dtype=np.float32)
    bags = dense.bags(cells)
    for first in range(0, len(cells), _SPOTS_AT_ONCE):
        part = bags[first : first + _SPOTS_AT_ONCE]
        counts = job.model.superpixels(part.reshape(-1, part.shape[-1])).mean(axis=0)
        predicted[first : first + _SPOTS_AT_ONCE] = counts.reshape(*part.shape[:2], -1)
    pitch_um = float(facts(section).get("pitch_um", np.nan))
    if not pitch_um > 0:
        raise MissingSlotError(
            f'section {section_name(section)} does not tell the distance of its spots; write uns["{UNS}"]["pitch_um"]'
        )
    return fit_measurement(dense.lattice, cells, bags, predicted, measured, pitch_um=pitch_um)


def _agreeing(counts: Floats, measurement: Measurement, cells: NDArray[np.intp], features: Floats) -> Floats:
    """Members (n_members, n_cells, n_genes), all brought by one factor to where their mean agrees with the spots."""
    mean = counts.mean(axis=0, dtype=np.float64)
    wanted = measurement.adjust(mean, cells, features)
    some = mean > 0
    agreeing: Floats = np.where(some, counts * (wanted / np.where(some, mean, 1.0)), wanted)
    return agreeing


def _summed(values: Floats, step: int) -> Floats:
    """Sums over squares of `step` super-pixels, (n, height, width) to (n, ceil(height / step), ceil(width / step))."""
    if step == 1:
        return values
    height, width = (-(-length // step) * step for length in values.shape[1:])
    whole = np.zeros((len(values), height, width), dtype=values.dtype)
    whole[:, : values.shape[1], : values.shape[2]] = values
    summed: Floats = whole.reshape(len(values), height // step, step, width // step, step).sum(axis=(2, 4))
    return summed

"""Predicted super-pixels on disk: a SpatialData folder whose images have one channel per gene, written by windows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import HistoflowError, OptionError, PanelMismatchError, ReadError
from histoflow._keys import SPATIAL, SPATIAL_UM, STD, UNS
from histoflow.io.hdf5 import READING_ERRORS
from histoflow.io.images import extra

if TYPE_CHECKING:
    from spatialdata import SpatialData

Floats = NDArray[np.float32]

MEAN = "mean"
TISSUE, SPOTS = "tissue", "spots"
BUDGET_BYTES = 1 << 30
"""What an AnnData of super-pixels may take in memory."""

_MOST_SUPERPIXELS = 1 << 28
"""More than 13 cm a side at 8 µm."""
_MOST_CHUNK_BYTES = 1 << 28
_SPOT_NAMES, _GENES = "spot_names", "panel"


@dataclass(frozen=True)
class Canvas:
    """Where the super-pixels of a slide lie.

    Attributes
    ----------
    shape
        Rows and columns.
    px
        Width and height of a super-pixel in level-0 pixels.
    um
        Its side in µm.
    chunk
        Side of the squares, in super-pixels, that are stored and written as one.
    """

    shape: tuple[int, int]
    px: tuple[float, float]
    um: float
    chunk: int


@dataclass(frozen=True)
class SuperPixels:
    """Super-pixels of a slide in a folder that SpatialData reads too.

    Images ``mean`` and ``std``, float32 (gene, y, x), chunked gene by gene; labels ``tissue`` (1 on tissue) and, where
    spots are known, ``spots`` (row of the spot that a super-pixel belongs to, from 1; 0 for none). Coordinate system
    ``"global"`` is level-0 pixels. Off the tissue everything is zero.

    Parameters
    ----------
    path
        The folder, from `hf.super_resolve` or `histoflow super-resolve`.

    Raises
    ------
    ReadError
        If the folder does not hold super-pixels.
    """

    path: Path

    def __post_init__(self) -> None:
        """Refuse what is no such folder."""
        with _reading(self.path):
            if UNS not in self._root().attrs or f"images/{MEAN}" not in self._root():
                raise ReadError("it holds no super-pixels")
            _check_facts(self._root().attrs[UNS])

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of them: method, scale, panel, `superpixel_um`, `n_superpixels` of a spot, slide."""
        known: dict[str, Any] = dict(self._root().attrs[UNS])
        return {key: value for key, value in known.items() if key != _SPOT_NAMES}

    @property
    def genes(self) -> tuple[str, ...]:
        """Genes in the order of the images' channels."""
        return tuple(self.facts[_GENES])

    def spatialdata(self) -> SpatialData:
        """Open the folder as a SpatialData, its images read when they are needed."""
        opened: SpatialData = extra("spatialdata").read_zarr(self.path)
        return opened

    def anndata(self, genes: Sequence[str] | None = None) -> AnnData:
        """Read the super-pixels on tissue.

        Parameters
        ----------
        genes
            Which genes; None for all.

        Returns
        -------
        One row per super-pixel, named row x column: X the mean over the ensemble, ``layers["std"]`` its spread, both
        float32, the share of a spot's counts that falls on the super-pixel (scale: ``uns["histoflow"]["scale"]``);
        ``obsm["spatial"]`` centres in level-0 pixels, ``obsm["spatial_um"]`` in µm, x, y; ``obs["spot"]`` the spot it
        belongs to, where spots are known.

        Raises
        ------
        PanelMismatchError
            If there is no such gene.
        OptionError
            If the result would take more than 1 GiB.
        ReadError
            If the folder is damaged.
        """
        chosen = self.genes if genes is None else tuple(genes)
        if unknown := [gene for gene in chosen if gene not in self.genes]:
            raise PanelMismatchError(f"{self.path} has {len(self.genes)} genes, and no {', '.join(unknown[:5])}")
        with _reading(self.path):
            return self._table(chosen)

    def _table(self, chosen: tuple[str, ...]) -> AnnData:
        """The super-pixels on tissue, of genes that are there."""
        tissue = self._labels(TISSUE)
        check_budget(int(np.count_nonzero(tissue)), len(chosen))
        rows, columns = np.nonzero(tissue)
        made = AnnData(self._rows(MEAN, chosen, rows, columns), layers={STD: self._rows(STD, chosen, rows, columns)})
        made.var_names = pd.Index(chosen, dtype=object)
        made.obs_names = [f"{row}x{column}" for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
        centres = np.stack([columns, rows], axis=1) + 0.5
        known = self.facts
        made.obsm[SPATIAL] = centres * np.asarray(known["superpixel_px"])
        made.obsm[SPATIAL_UM] = centres * float(known["superpixel_um"])
        if f"labels/{SPOTS}" in self._root():
            spot = self._labels(SPOTS)[rows, columns].astype(np.int64) - 1
            made.obs["spot"] = pd.Categorical.from_codes(spot, self._root().attrs[UNS][_SPOT_NAMES])
        made.uns[UNS] = known | {_GENES: list(chosen)}
        return made

    def write(self, window: tuple[slice, slice], mean: Floats, std: Floats, labels: Mapping[str, NDArray[Any]]) -> None:
        """Fill a window.

        Parameters
        ----------
        window
            Rows and columns, on the borders of chunks.
        mean, std
            Shape (n_genes, height, width).
        labels
            By name, shape (height, width).
        """
        for name, values in ((MEAN, mean), (STD, std)):
            self._array(f"images/{name}", "r+")[(slice(None), *window)] = values
        for name, values in labels.items():
            self._array(f"labels/{name}", "r+")[window] = values

    def _labels(self, name: str) -> NDArray[Any]:
        """All of a picture of labels, (rows, columns), once it is no larger than a slide can be."""
        stored = self._array(f"labels/{name}")
        if stored.ndim != 2 or stored.dtype.kind not in "iub" or stored.size > _MOST_SUPERPIXELS:
            raise ReadError(f"labels {name} have shape {stored.shape} of {stored.dtype}, which are none")
        return np.asarray(stored[:])

    def _rows(self, image: str, genes: tuple[str, ...], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
        """Values of some genes, read one by one, (n_superpixels, n_genes)."""
        stored, places = self._array(f"images/{image}"), [self.genes.index(gene) for gene in genes]
        values = np.empty((len(rows), len(genes)), dtype=np.float32)
        for column, place in enumerate(places):
            values[:, column] = stored[place][rows, columns]
        return values

    def _root(self) -> Any:
        return extra("zarr").open_group(str(self.path), mode="r")

    def _array(self, element: str, mode: str = "r") -> Any:
        """The full-size level of an image or of labels."""
        group = extra("zarr").open_group(str(self.path), mode=mode)[element]
        array = group[min(group.array_keys())]
        if np.prod(array.chunks, dtype=float) * array.dtype.itemsize > _MOST_CHUNK_BYTES:
            raise ReadError(f"{element} has chunks of {array.chunks}, which are too large to be read")
        return array


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what zarr says of a damaged folder into an error that tells the folder."""
    try:
        yield
    except HistoflowError as err:
        if type(err) is not ReadError:
            raise
        raise ReadError(f"{path}: {err}; hf.super_resolve(…, out=) writes super-pixels") from err
    except READING_ERRORS as err:
        raise ReadError(
            f"{path} is no zarr folder, or not a whole one ({err}); hf.super_resolve(…, out=) writes one"
        ) from err


def _check_facts(known: Any) -> None:
    """Refuse facts that are not those of super-pixels."""
    genes, px = known[_GENES], np.asarray(known["superpixel_px"], dtype=float)
    if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes) or len(set(genes)) < len(genes):
        raise ReadError("its genes are no list of names, each once")
    if px.shape != (2,) or not (px > 0).all() or not 0 < float(known["superpixel_um"]) < np.inf:
        raise ReadError("the size of its super-pixels is no size")


def check_budget(n_superpixels: int, n_genes: int) -> None:
    """Refuse an AnnData that would take more than 1 GiB.

    Raises
    ------
    OptionError
        With the size, and what to do.
    """
    size = 8 * n_superpixels * n_genes
    if size > BUDGET_BYTES:
        raise OptionError(
            f"{n_superpixels} super-pixels × {n_genes} genes, mean and spread, take {size / 2**30:.1f} GiB in memory, "
            "more than 1 GiB; give fewer genes=, a smaller factor=, or out= to have them in a folder"
        )


def create_superpixels(
    path: Path, canvas: Canvas, genes: Sequence[str], facts: Mapping[str, Any], spots: Sequence[str] | None = None
) -> SuperPixels:
    """Lay out an empty folder of super-pixels, for `SuperPixels.write` to fill.

    Parameters
    ----------
    path
        The folder; it must not exist.
    canvas
        Where the super-pixels lie.
    genes
        Channels of the images.
    facts
        Stored with them, as JSON holds it.
    spots
        Names of the spots; None where none are known.

    Returns
    -------
    The folder, everything zero.
    """
    models, transformations = extra("spatialdata.models"), extra("spatialdata.transformations")
    scale = {"global": transformations.Scale(list(canvas.px), axes=("x", "y"))}
    array = extra("dask.array")
    side, size = (canvas.chunk, canvas.chunk), canvas.shape
    images = {
        name: models.Image2DModel.parse(
            array.zeros((len(genes), *size), chunks=(1, *side), dtype=np.float32),
            dims=("c", "y", "x"),
            c_coords=list(genes),
            transformations=scale,
        )
        for name in (MEAN, STD)
    }
    labels = {
        name: models.Labels2DModel.parse(
            array.zeros(size, chunks=side, dtype=kind), dims=("y", "x"), transformations=scale
        )
        for name, kind in ((TISSUE, np.uint8), (SPOTS, np.int32))[: 1 if spots is None else 2]
    }
    about = {"superpixel_px": list(canvas.px), "superpixel_um": canvas.um, _GENES: list(genes)}
    names = {} if spots is None else {_SPOT_NAMES: list(spots)}
    made = extra("spatialdata").SpatialData(images=images, labels=labels, attrs={UNS: {**facts, **about, **names}})
    with warnings.catch_warnings():
        # ome_zarr calls a class of its own that it has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        made.write(path)
    return SuperPixels(path)

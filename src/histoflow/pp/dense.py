"""Features of every super-pixel of a slide, on disk, made and read window by window; and the bags of spots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter1d

from histoflow._errors import EncoderMismatchError, ShapeError, SlideMismatchError
from histoflow._files import atomic_path, cache_folder, locked, value_hash
from histoflow._keys import DENSE, EMBEDDINGS, SPATIAL, UNS, facts
from histoflow._progress import track
from histoflow.pp.embed import tile_section
from histoflow.pp.encoders import Dense, Encoder
from histoflow.pp.encoders.dense import SUPERPIXEL_UM
from histoflow.pp.lattice import Indices, Lattice, Mask, Window, n_superpixels_of, spot_um_of
from histoflow.pp.tiles import (
    TILES,
    check_slide,
    checked_places,
    lay_tiles,
    read_grid,
    read_patches,
    slide_facts,
    tile_um,
    tissue_outlines,
)

if TYPE_CHECKING:
    from wsidata import WSIData

Floats = NDArray[np.float32]


_FORMAT = 1
_TOKENS, _DONE, _STATISTICS = "tokens.npy", "done.npy", "statistics.npz"
_FLUSH = 16
_MOST_STATISTICS_WINDOWS = 48
_STATISTICS_STEP = 4
_STATISTICS_SIDE = 64
_ROWS_AT_ONCE = 32
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class DenseMap:
    """Features of the super-pixels of one slide, read window by window from a folder on disk.

    Attributes
    ----------
    lattice
        Where they lie.
    dense
        What makes features of tokens.
    folder
        Tokens, float16 (rows, columns, n_channels), and which of them are there.
    tissue
        Super-pixels on tissue: means are taken over these.
    mean, spread
        Of the features over the tissue of the slide, shape (n_features,).
    """

    lattice: Lattice
    dense: Dense
    folder: Path
    tissue: Mask
    mean: Floats
    spread: Floats

    def features(self, window: Window) -> Floats:
        """Features of a window, in units of the tissue's spread, float32, shape (height, width, n_features).

        They are a function of the slide alone: the window is read with all the tissue that its means reach.
        """
        described = raw_features(self.dense, self.folder, self.tissue, window)
        described -= self.mean
        described /= self.spread
        return described

    def bags(self, cells: Indices) -> Floats:
        """Features of super-pixels by flat index (n_bags, n): float32, shape (n_bags, n, n_features)."""
        wanted, back = np.unique(cells, return_inverse=True)
        found = np.empty((len(wanted), self.dense.n_features), dtype=np.float32)
        rows, columns = np.divmod(wanted, self.lattice.shape[1])
        for window in self.lattice.windows():
            here = _in_window(rows, columns, window)
            if here.any():
                found[here] = self.features(window)[rows[here] - window[0].start, columns[here] - window[1].start]
        return found[back].reshape(*cells.shape, -1)


def _in_window(rows: Indices, columns: Indices, window: Window) -> Mask:
    inside: Mask = (rows >= window[0].start) & (rows < window[0].stop)
    inside &= (columns >= window[1].start) & (columns < window[1].stop)
    return inside


def raw_features(dense: Dense, folder: Path, tissue: Mask, window: Window) -> Floats:
    """Features of a window as they are made, not yet in units of the slide's spread."""
    reach = max(dense.widths) // 2
    wide = [slice(max(part.start - reach, 0), part.stop + reach) for part in window]
    # The map of the file is dropped at once: its pages count as memory of the process.
    tokens = np.load(folder / _TOKENS, mmap_mode="r", allow_pickle=False)[wide[0], wide[1]].astype(np.float32)
    inner = tuple(slice(part.start - w.start, part.stop - w.start) for part, w in zip(window, wide, strict=True))
    means = _means(tokens, tissue[wide[0], wide[1]].astype(np.float32), dense.widths, (inner[0], inner[1]))
    if dense.describe is None:
        return means.reshape(*means.shape[:2], -1)
    strips = [dense.describe(means[first : first + _ROWS_AT_ONCE]) for first in range(0, len(means), _ROWS_AT_ONCE)]
    return np.concatenate(strips)


def _means(tokens: Floats, tissue: Floats, widths: Sequence[int], inner: Window) -> Floats:
    """Means over the tissue in squares of some widths, (height, width, n_widths, n_channels).

    A super-pixel without tissue around it keeps its own token; so does every one at a width of 1.
    """
    means = np.empty((*tissue[inner].shape, len(widths), tokens.shape[-1]), dtype=np.float32)
    weights = [None if width == 1 else _box(tissue, width)[inner] for width in widths]
    for channel in range(tokens.shape[-1]):
        own = tokens[..., channel]
        on_tissue = own * tissue
        for place, (width, weight) in enumerate(zip(widths, weights, strict=True)):
            if weight is None:
                means[..., place, channel] = own[inner]
                continue
            some = weight > 0.5 / width**2
            ratio = _box(on_tissue, width)[inner] / np.where(some, weight, 1.0)
            means[..., place, channel] = np.where(some, ratio, own[inner])
    return means


def _box(values: Floats, width: int) -> NDArray[np.float64]:
    """Mean over squares, nothing beyond the edge; in float64, whose running sums leave nothing behind."""
    rows = uniform_filter1d(values, width, axis=0, mode="constant", output=np.float64)
    box: NDArray[np.float64] = uniform_filter1d(rows, width, axis=1, mode="constant")
    return box


@dataclass(frozen=True)
class DenseEmbedder:
    """Describes the super-pixels of slides, and the spots of sections as the bag of those that they cover.

    Parameters
    ----------
    encoder
        What describes a window; it must have a `dense`.
    cache_dir
        Cache folder; None for the default.
    batch_size
        Windows encoded at once; it never changes a number of ours.
    device
        Where the encoder runs.

    Raises
    ------
    EncoderMismatchError
        If the encoder only describes whole patches.
    """

    encoder: Encoder
    cache_dir: str | Path | None = None
    batch_size: int = 8
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse an encoder without tokens."""
        _dense_of(self.encoder)

    @property
    def slot(self) -> str:
        """``obsm`` entry of the bags."""
        return self.encoder.name + DENSE

    @property
    def dense(self) -> Dense:
        """How the encoder describes super-pixels."""
        return _dense_of(self.encoder)

    def facts(self) -> dict[str, Any]:
        """How bags are made, and `id`, a hash of that, 12 hex digits."""
        made = {**self.encoder.facts(), **self.dense.facts()}
        identity = {key: value for key, value in made.items() if key != "licence"}
        return {**made, "id": value_hash(identity)[:12]}

    def section(self, section: AnnData, wsi: WSIData) -> AnnData:
        """Describe the spots of a section by their super-pixels, in place.

        Parameters
        ----------
        section
            A section; only its places and the diameter of its spots (`spot_um_of`) are used.
        wsi
            The slide of this section, from `hf.open_wsi`.

        Returns
        -------
        The same section, with float32 (n_spots, n_superpixels × n_features) in ``obsm["<encoder>_dense"]``: the
        features of the super-pixels nearest to each centre, one after the other; and how they were made in
        ``uns["histoflow"]["embeddings"]``.

        Raises
        ------
        MissingSlotError
            If the section has no places, or tells neither the diameter nor the distance of its spots.
        SlideMismatchError
            If `wsi` is another slide than the section's.
        """
        check_slide(section, wsi)
        spot_um = spot_um_of(section)
        values, made = self.places(wsi, section.obsm[SPATIAL], spot_um)
        section.obsm[self.slot] = values
        section.uns[UNS][EMBEDDINGS] = {**facts(section).get(EMBEDDINGS, {}), self.slot: made}
        return section

    def places(self, wsi: WSIData, xy: ArrayLike, spot_um: float) -> tuple[Floats, dict[str, Any]]:
        """Describe discs around places of a slide by their super-pixels.

        Parameters
        ----------
        wsi
            A slide from `hf.open_wsi`.
        xy
            Shape (n_places, 2), x, y in level-0 pixels.
        spot_um
            Diameter of the discs in µm.

        Returns
        -------
        float32, shape (n_places, n_superpixels × n_features); and how they were made.

        Raises
        ------
        ShapeError
            If `xy` has another shape or holds no place.
        """
        centres = checked_places(xy)
        n_superpixels = n_superpixels_of(spot_um)
        cells = Lattice.of(wsi).nearest(centres, n_superpixels)
        bags = self.map(wsi, cells).bags(cells)
        about = {"slide_id": str(slide_facts(wsi)["slide_id"]), "spot_um": spot_um, "n_superpixels": n_superpixels}
        return bags.reshape(len(bags), -1), self.facts() | about

    def tiles(self, wsi: WSIData, step_um: float) -> AnnData:
        """Describe a grid over the tissue of a slide, as if there were a spot on every tile.

        Parameters
        ----------
        wsi
            A slide from `hf.open_wsi`; gets ``shapes["tiles"]``.
        step_um
            Distance of the tiles in µm.

        Returns
        -------
        A section without genes: ``obs`` with `tile_id` and `tissue_id`, places and bags in ``obsm``.
        """
        return self.section(tile_section(wsi, lay_tiles(wsi, step_um), step_um), wsi)

    def laid_tiles(self, wsi: WSIData, tile_key: str = TILES) -> AnnData:
        """Describe the tiles that are on a slide already, in their order.

        Returns
        -------
        As `tiles`.

        Raises
        ------
        MissingSlotError
            If there are none of that name.
        """
        return self.section(tile_section(wsi, read_grid(wsi, tile_key), tile_um(wsi, tile_key)), wsi)

    def map(self, wsi: WSIData, cells: Indices | None = None) -> DenseMap:
        """Describe every super-pixel on the tissue of a slide, and some others.

        Parameters
        ----------
        wsi
            A slide from `hf.open_wsi`.
        cells
            Flat indices of super-pixels that are needed whether they lie on tissue or not.

        Returns
        -------
        The map; what is on disk already is not made again.

        Raises
        ------
        SlideMismatchError
            If no tissue is found on the slide.
        """
        lattice = Lattice.of(wsi)
        tissue = lattice.inside(tissue_outlines(wsi))
        if not tissue.any():
            raise SlideMismatchError(f"the tissue on {slide_facts(wsi).get('slide')} is smaller than a super-pixel")
        needed = tissue.copy()
        needed.flat[[] if cells is None else np.unique(cells)] = True
        folder = cache_folder(self.cache_dir) / "features" / f"{self._key(wsi)}.dense"
        with locked(folder):
            self._fill(wsi, lattice, needed, folder)
            mean, spread = self._statistics(lattice, tissue, folder)
        return DenseMap(lattice, self.dense, folder, tissue, mean, spread)

    def _key(self, wsi: WSIData) -> str:
        known = slide_facts(wsi)
        return value_hash(
            {
                "format": _FORMAT,
                "slide": known["slide_id"],
                "mpp": [known["mpp_x"], known["mpp_y"]],
                "encoder": self.facts(),
                "device": self.device.partition(":")[0],
                "versions": {name: version(name) for name in ("torch", "pillow", "wsidata", "lazyslide")},
            }
        )

    def _fill(self, wsi: WSIData, lattice: Lattice, needed: Mask, folder: Path) -> None:
        """Encode the windows that hold a needed super-pixel and are not there yet."""
        kept = self.dense.window.side - 2 * self.dense.window.margin
        windows = lattice.windows(kept)
        if not folder.is_dir():
            _make_store(folder, (*lattice.shape, self.dense.n_channels), len(windows))
        done = np.load(folder / _DONE, allow_pickle=False)
        missing = [i for i, window in enumerate(windows) if not done[i] and needed[window].any()]
        parts = [missing[first : first + self.batch_size] for first in range(0, len(missing), self.batch_size)]
        for number, part in enumerate(track(parts, f"{self.encoder.name}, super-pixels"), start=1):
            encoded = self._encode(wsi, lattice, [windows[i] for i in part])
            _write(folder, [windows[i] for i in part], encoded)
            done[part] = True
            if number % _FLUSH == 0 or number == len(parts):
                with atomic_path(folder / _DONE) as temporary:
                    np.save(temporary, done, allow_pickle=False)

    def _encode(self, wsi: WSIData, lattice: Lattice, windows: list[Window]) -> NDArray[np.float16]:
        dense, (token_px, side, margin) = self.dense, self.dense.window
        half = side / 2 - margin
        corners = np.array([(rows.start, columns.start) for rows, columns in windows])
        centres = (corners[:, ::-1] + half) * SUPERPIXEL_UM / np.asarray(lattice.mpp)
        images = read_patches(wsi, centres, side_um=side * SUPERPIXEL_UM, patch_px=side * token_px)
        with torch.inference_mode():
            tokens = dense.tokens(torch.from_numpy(images).to(self.device))
        if tokens.shape != (len(windows), side, side, dense.n_channels):
            raise ShapeError(
                f"encoder {self.encoder.name} returned tokens of shape {tuple(tokens.shape)} for {len(windows)} "
                f"windows; it promised ({len(windows)}, {side}, {side}, {dense.n_channels})"
            )
        inner = slice(margin, side - margin)
        return tokens[:, inner, inner].to(torch.float16).cpu().numpy()

    def _statistics(self, lattice: Lattice, tissue: Mask, folder: Path) -> tuple[Floats, Floats]:
        """Mean and spread of the features over super-pixels that are fixed by the slide alone."""
        path = folder / _STATISTICS
        if not path.is_file():
            seen = np.concatenate(list(self._sampled(lattice, tissue, folder)))
            spread = np.maximum(seen.std(axis=0, dtype=np.float64), _LEAST_SPREAD)
            found = {"mean": seen.mean(axis=0, dtype=np.float64), "spread": spread}
            with atomic_path(path) as temporary:
                np.savez(temporary, allow_pickle=False, **found)
        with np.load(path, allow_pickle=False) as stored:
            return stored["mean"].astype(np.float32), stored["spread"].astype(np.float32)

    def _sampled(self, lattice: Lattice, tissue: Mask, folder: Path) -> Iterator[Floats]:
        """Features of every fourth super-pixel, both ways, in windows spread evenly over the tissue."""
        windows = [window for window in lattice.windows(_STATISTICS_SIDE) if tissue[window].any()]
        chosen = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), _MOST_STATISTICS_WINDOWS)).astype(int))
        every = slice(None, None, _STATISTICS_STEP)
        for number in chosen:
            sampled = raw_features(self.dense, folder, tissue, windows[number])[every, every]
            on_tissue = tissue[windows[number]][every, every]
            yield sampled[on_tissue]


def _dense_of(encoder: Encoder) -> Dense:
    if encoder.dense is None:
        raise EncoderMismatchError(
            f"encoder {encoder.name} describes whole patches only, and super-pixels need one with tokens: scatter, or "
            "a vision transformer of timm or LazySlide"
        )
    return encoder.dense


def _make_store(folder: Path, shape: tuple[int, int, int], n_windows: int) -> None:
    """Lay an empty map; what is never written takes no room on disk."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        tokens = np.lib.format.open_memmap(temporary / _TOKENS, mode="w+", dtype=np.float16, shape=shape)
        del tokens
        np.save(temporary / _DONE, np.zeros(n_windows, dtype=bool), allow_pickle=False)


def _write(folder: Path, windows: list[Window], encoded: NDArray[np.float16]) -> None:
    tokens = np.load(folder / _TOKENS, mmap_mode="r+", allow_pickle=False)
    for (rows, columns), values in zip(windows, encoded, strict=True):
        tokens[rows, columns] = values[: rows.stop - rows.start, : columns.stop - columns.start]
    tokens.flush()

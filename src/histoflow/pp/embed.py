"""Embeddings as a function of (slide, place, µm) and nothing else; cached by content, resumed block by block."""

from __future__ import annotations

import hashlib
import io
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import OptionError, ScaleWarning, ShapeError, SlideMismatchError
from histoflow._files import atomic_path, cache_folder, locked, value_hash
from histoflow._keys import EMBEDDINGS, SPATIAL, SPATIAL_UM, TISSUE, UNS, check_section, facts, section_name
from histoflow._progress import track
from histoflow.pp.context import disc_mean
from histoflow.pp.encoders import Encoder
from histoflow.pp.tiles import (
    TILES,
    Grid,
    annotate_tiles,
    lay_tiles,
    read_grid,
    read_patches,
    slide_facts,
    statistics_grid,
    tile_um,
    upsampling,
)

if TYPE_CHECKING:
    from wsidata import WSIData

Floats = NDArray[np.float32]

BLOCK = 128
"""Patches per cached block; boundaries are fixed, so that a killed run and its successor agree."""
_FORMAT = 1
_DIGEST_BYTES = 32
_MUCH_UPSAMPLING = 2.0
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Recipe:
    """What an embedding holds: fields of view at the place, and the mean of the tissue around it.

    Parameters
    ----------
    patch_um
        Sides of the fields of view in µm, each a square centred on the place.
    context_um
        Radii in µm within which the tissue's features are averaged.
    grid_um
        Step in µm of the fixed tissue grid that statistics and context are taken from.
    """

    patch_um: tuple[float, ...] = (112.0, 224.0)
    context_um: tuple[float, ...] = (250.0, 500.0)
    grid_um: float = 112.0

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        if not self.patch_um or min((*self.patch_um, *self.context_um, self.grid_um)) <= 0:
            raise OptionError(f"{self} has no patch or a size that is not above 0; give µm")


def embedding_facts(encoder: Encoder, recipe: Recipe) -> dict[str, Any]:
    """How embeddings are made: encoder and recipe, and `id`, a hash of both, 12 hex digits."""
    made = {**encoder.facts(), **{key: _listed(value) for key, value in asdict(recipe).items()}}
    identity = {key: value for key, value in made.items() if key != "licence"}
    return {**made, "id": value_hash(identity)[:12]}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Embedder:
    """Makes embeddings of places on slides.

    Parameters
    ----------
    encoder
        What describes a patch.
    recipe
        Fields of view, context and grid.
    cache_dir
        Cache folder; None for the default.
    batch_size
        Patches encoded at once; it never changes a number.
    device
        Where the encoder runs.
    num_workers
        Threads that read patches ahead of the encoder; it never changes a number.
    """

    encoder: Encoder
    recipe: Recipe = field(default_factory=Recipe)
    cache_dir: str | Path | None = None
    batch_size: int = 32
    device: str = "cpu"
    num_workers: int = 1

    @property
    def slot(self) -> str:
        """``obsm`` entry of the embeddings."""
        return self.encoder.name

    def section(self, section: AnnData, wsi: WSIData) -> AnnData:
        """Embed the spots of a section into ``obsm[encoder]``, in place.

        Parameters
        ----------
        section
            A section; only its places are used.
        wsi
            The slide of this section, from `hf.open_wsi`.

        Returns
        -------
        The same section, with float32 (n_spots, n_features × n_fields × (1 + n_radii)) in ``obsm`` and the recipe in
        ``uns["histoflow"]["embeddings"]``.

        Raises
        ------
        MissingSlotError
            If the section has no places.
        SlideMismatchError
            If `wsi` is another slide than the section's.
        """
        check_section(section, needs=[SPATIAL, UNS])
        if facts(section).get("slide_id") != slide_facts(wsi).get("slide_id"):
            raise SlideMismatchError(
                f"section {section_name(section)} was read with another slide than {slide_facts(wsi).get('slide')}; "
                "embed it with hf.embed(section), which opens its own"
            )
        values, made = self.places(wsi, section.obsm[SPATIAL])
        section.obsm[self.encoder.name] = values
        section.uns[UNS][EMBEDDINGS] = {**facts(section).get(EMBEDDINGS, {}), self.encoder.name: made}
        return section

    def tiles(self, wsi: WSIData, step_um: float) -> AnnData:
        """Embed a grid over the tissue of a slide, for which no counts are needed.

        Parameters
        ----------
        wsi
            A slide from `hf.open_wsi`; gets ``shapes["tiles"]`` and ``tables["<encoder>_tiles"]``.
        step_um
            Distance of the tiles in µm.

        Returns
        -------
        A section without genes: ``obs`` with `tile_id` and `tissue_id`, places and embeddings in ``obsm``.
        """
        return self._grid(wsi, lay_tiles(wsi, step_um), step_um, TILES)

    def laid_tiles(self, wsi: WSIData, tile_key: str = TILES) -> AnnData:
        """Embed the tiles that are on a slide already, in their order.

        Returns
        -------
        As `tiles`.

        Raises
        ------
        MissingSlotError
            If there are none of that name.
        """
        return self._grid(wsi, read_grid(wsi, tile_key), tile_um(wsi, tile_key), tile_key)

    def _grid(self, wsi: WSIData, grid: Grid, step_um: float, tile_key: str) -> AnnData:
        table = tile_section(wsi, grid, step_um)
        self.section(table, wsi)
        wsi.tables[f"{self.encoder.name}_{tile_key}"] = _feature_table(table, self.encoder.name, tile_key)
        return table

    def places(self, wsi: WSIData, xy: ArrayLike) -> tuple[Floats, dict[str, Any]]:
        """Embed places of a slide.

        Parameters
        ----------
        wsi
            A slide from `hf.open_wsi`.
        xy
            Shape (n_places, 2), x, y in level-0 pixels.

        Returns
        -------
        Embeddings, float32, shape (n_places, n_features × n_fields × (1 + n_radii)): the fields of view in units of
        the tissue's spread, then for each radius their mean over the tissue grid; and how they were made.

        Raises
        ------
        ShapeError
            If `xy` has another shape or holds no place.
        """
        centres = np.asarray(xy, dtype=np.float64)
        if centres.ndim != 2 or centres.shape[1] != 2 or not len(centres):
            raise ShapeError(f"xy must have shape (n_places, 2) with at least one place, got {centres.shape}")
        factor = self._tell_upsampling(wsi)
        grid = statistics_grid(wsi, self.recipe.grid_um)
        around = np.concatenate(list(self._fields(wsi, grid.xy, "tissue grid")), axis=1)
        own = np.concatenate(list(self._fields(wsi, centres, "places")), axis=1)
        mean, spread = around.mean(axis=0), np.maximum(around.std(axis=0), _LEAST_SPREAD)
        around, own = (around - mean) / spread, (own - mean) / spread
        mpp = [float(slide_facts(wsi)[key]) for key in ("mpp_x", "mpp_y")]
        context = [disc_mean(own, centres * mpp, around, grid.xy * mpp, um) for um in self.recipe.context_um]
        made = embedding_facts(self.encoder, self.recipe) | {
            "slide_id": str(slide_facts(wsi)["slide_id"]),
            "upsampling": round(factor, 3),
            "n_grid_tiles": len(grid.xy),
            "grid_mean": mean,
            "grid_std": spread,
        }
        return np.concatenate([own, *context], axis=1), made

    def _tell_upsampling(self, wsi: WSIData) -> float:
        factor = max(upsampling(wsi, um, self.encoder.patch_px) for um in self.recipe.patch_um)
        if factor > _MUCH_UPSAMPLING:
            warnings.warn(
                f"{slide_facts(wsi).get('slide')} is {factor:.1f} times coarser than encoder {self.encoder.name} "
                "takes: its patches are up-sampled and hold less than they seem to",
                ScaleWarning,
                stacklevel=4,
            )
        return factor

    def _fields(self, wsi: WSIData, xy: NDArray[np.float64], what: str) -> Iterator[Floats]:
        """Features (n_places, n_features) of each field of view, from the cache where they are there."""
        folder = cache_folder(self.cache_dir) / "features"
        for side_um in self.recipe.patch_um:
            target = folder / f"{self._key(wsi, xy, side_um)}.npy"
            with locked(target):
                stored = _load(target, (len(xy), self.encoder.n_features))
                if stored is None:
                    label = f"{self.encoder.name}, {side_um:g} µm, {what}"
                    stored = self._encode_all(wsi, xy, side_um, target, label)
            yield stored

    def _key(self, wsi: WSIData, xy: NDArray[np.float64], side_um: float) -> str:
        known = slide_facts(wsi)
        return value_hash(
            {
                "format": _FORMAT,
                "slide": known["slide_id"],
                "mpp": [known["mpp_x"], known["mpp_y"]],
                "xy": np.ascontiguousarray(xy).tobytes().hex(),
                "side_um": side_um,
                "encoder": self.encoder.facts(),
                "device": self.device.partition(":")[0],
                "versions": {name: version(name) for name in ("torch", "pillow", "wsidata")},
            }
        )

    def _encode_all(self, wsi: WSIData, xy: NDArray[np.float64], side_um: float, target: Path, label: str) -> Floats:
        """Encode block by block, each block kept, then all of them as one file."""
        folder = target.with_suffix(".parts")
        blocks = [xy[start : start + BLOCK] for start in range(0, len(xy), BLOCK)]
        paths = [folder / f"{number:06d}.npy" for number in range(len(blocks))]
        missing = [i for i, path in enumerate(paths) if _load(path, (len(blocks[i]), self.encoder.n_features)) is None]
        read = partial(read_patches, wsi, side_um=side_um, patch_px=self.encoder.patch_px)
        with ThreadPoolExecutor(self.num_workers) as reader:  # the next blocks are read while this one is encoded
            queue = [reader.submit(read, blocks[i]) for i in missing[: self.num_workers]]
            for place, i in enumerate(track(missing, label)):
                ahead = place + self.num_workers
                queue += [reader.submit(read, blocks[j]) for j in missing[ahead : ahead + 1]]
                _store(paths[i], self._encode(queue.pop(0).result()))
        features = np.concatenate([np.load(path, allow_pickle=False) for path in paths])
        _store(target, features)
        shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left an unfinished block in it
        return features

    def _encode(self, patches: NDArray[np.uint8]) -> Floats:
        starts = range(0, len(patches), self.batch_size)
        return np.concatenate([self.encoder(patches[i : i + self.batch_size], self.device) for i in starts])


def tile_section(wsi: WSIData, grid: Grid, step_um: float) -> AnnData:
    """Make a section without genes of the tiles of a slide, `step_um` µm apart."""
    known = slide_facts(wsi)
    table = AnnData(shape=(len(grid.xy), 0))
    table.obs_names = [f"tile_{tile}" for tile in grid.tile_id]
    table.obs["tile_id"], table.obs[TISSUE] = grid.tile_id, grid.tissue_id
    table.obsm[SPATIAL] = grid.xy
    table.obsm[SPATIAL_UM] = grid.xy * [float(known["mpp_x"]), float(known["mpp_y"])]
    name = Path(str(known["slide"])).stem
    table.uns[UNS] = {**known, "section": name, "kind": "tiles", "pitch_um": float(step_um)}
    return table


def _feature_table(table: AnnData, encoder: str, tile_key: str) -> AnnData:
    """The embeddings as X, the way LazySlide keeps features of tiles."""
    features = AnnData(X=np.asarray(table.obsm[encoder]), obs=table.obs.copy())
    features.obsm[SPATIAL], features.obsm[SPATIAL_UM] = table.obsm[SPATIAL], table.obsm[SPATIAL_UM]
    features.uns[UNS] = table.uns[UNS]
    return annotate_tiles(features, tile_key)


def _load(path: Path, shape: tuple[int, int]) -> Floats | None:
    """A cached array, or None if there is none or it is not, byte for byte, what was stored."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    stored: Floats = np.load(io.BytesIO(body), allow_pickle=False)
    return stored if stored.shape == shape and stored.dtype == np.float32 else None


def _store(path: Path, features: Floats) -> None:
    """Write an array as npy, followed by the SHA-256 of it, which numpy does not mind."""
    body = io.BytesIO()
    np.save(body, features, allow_pickle=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())

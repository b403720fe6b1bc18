"""Embeddings as a function of (slide, place, µm) and nothing else; cached by content, resumed block by block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import OptionError, ScaleWarning
from histoflow._files import cache_folder, let_go, roomy_array, value_hash
from histoflow._keys import EMBEDDINGS, SPATIAL, SPATIAL_UM, TISSUE, UNS, facts
from histoflow.pp.blocks import cached_features
from histoflow.pp.context import disc_mean
from histoflow.pp.encoders import Encoder
from histoflow.pp.tiles import (
    TILES,
    Grid,
    annotate_tiles,
    check_slide,
    checked_places,
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

_FORMAT = 1
_CONTEXT_OF = "one piece of tissue"
_STATISTICS = "median"
_MUCH_UPSAMPLING = 2.0
_LEAST_SPREAD = 1e-6
_LEAST_SHARE = 0.1
"""A spread is at least so much of the standard deviation: half of a tissue may be alike to the last digit."""
_FARTHEST = 5.0
"""Spreads from the centre up to which a patch counts in the context of others: folds, edges and dirt lie beyond."""
_OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""
_ROWS, _COLUMNS = 1 << 13, 32
"""Of embeddings that are copied at once."""


@dataclass(frozen=True)
class Recipe:
    """What an embedding holds: fields of view at the place, and the mean of the tissue around it.

    Parameters
    ----------
    patch_um
        Sides of the fields of view in µm, each a square centred on the place.
    context_um
        Radii in µm within which the features of the same piece of tissue are averaged.
    grid_um
        Step in µm of the fixed tissue grid that statistics and context are taken from.
    standardize
        Whether the numbers are in units of the tissue's spread; False for the encoder's own, which a pretrained model
        takes. These have no context, and no tissue grid is read.
    """

    patch_um: tuple[float, ...] = (112.0, 224.0)
    context_um: tuple[float, ...] = (125.0, 250.0, 500.0, 1000.0)
    grid_um: float = 112.0
    standardize: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive, and context without standardisation."""
        if self.context_um and not self.standardize:
            raise OptionError(f"{self} has context, which is in units of the tissue's spread; give context_um=()")
        if not self.patch_um or min((*self.patch_um, *self.context_um, self.grid_um)) <= 0:
            raise OptionError(f"{self} has no patch or a size that is not above 0; give µm")


def embedding_facts(encoder: Encoder, recipe: Recipe) -> dict[str, Any]:
    """How embeddings are made: encoder and recipe, and `id`, a hash of both, 12 hex digits."""
    made = {**encoder.facts(), **encoder.layout(), **{key: _listed(value) for key, value in asdict(recipe).items()}}
    if recipe.standardize:
        del made["standardize"]  # embeddings were standardised before there was a choice, and keep their id
    identity = {key: value for key, value in made.items() if key != "licence"}
    if recipe.context_um:
        identity["context_of"] = _CONTEXT_OF
    if recipe.standardize:
        identity["statistics"] = _STATISTICS
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
        The same section, with float32 (n_spots, n_features × n_fields × (1 + n_radii)) in ``obsm``, the recipe in
        ``uns["histoflow"]["embeddings"]`` and, unless it is there, the piece of tissue in ``obs["tissue_id"]``.

        Raises
        ------
        MissingSlotError
            If the section has no places.
        SlideMismatchError
            If `wsi` is another slide than the section's.
        """
        check_slide(section, wsi)
        values, made = self.places(wsi, section.obsm[SPATIAL])
        pieces = made.pop("tissue_id", None)
        if pieces is not None and TISSUE not in section.obs:
            section.obs[TISSUE] = pieces
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
        the tissue's spread, then for each radius their mean over the grid on the same piece of tissue; and how they
        were made, with the `tissue_id` of each place, shape (n_places,). Where the recipe does not standardise, the
        fields of view as the encoder makes them, and nothing more. More than 2²⁷ numbers are mapped from a file in the
        cache folder that goes with the array.

        Raises
        ------
        ShapeError
            If `xy` has another shape or holds no place.
        """
        centres = checked_places(xy)
        told = {
            "slide_id": str(slide_facts(wsi)["slide_id"]),
            "upsampling": round(self._tell_upsampling(wsi), 3),
        }
        if self.recipe.standardize:
            values, of_slide = self._standardized(wsi, centres)
        else:
            values, of_slide = self._side_by_side(self._fields(wsi, centres, "places"), n_blocks=1), {}
        return values, embedding_facts(self.encoder, self.recipe) | told | of_slide

    def _standardized(self, wsi: WSIData, centres: NDArray[np.float64]) -> tuple[Floats, dict[str, Any]]:
        """Fields of view in units of the tissue's spread, their context beside them; and what is of the slide."""
        grid = statistics_grid(wsi, self.recipe.grid_um)
        around = self._side_by_side(self._fields(wsi, grid.xy, "tissue grid"), n_blocks=1)
        fields = self._fields(wsi, centres, "places")
        values = self._side_by_side(fields, n_blocks=1 + len(self.recipe.context_um))
        centre, spread = _robust(around)
        width = around.shape[1]
        own = values[:, :width]
        for rows in _blocks(len(own)):
            own[rows] = (own[rows] - centre) / spread
            let_go(values)
        for rows in _blocks(len(around)):
            around[rows] = np.clip((around[rows] - centre) / spread, -_FARTHEST, _FARTHEST)
            let_go(around)
        mpp = [float(slide_facts(wsi)[key]) for key in ("mpp_x", "mpp_y")]
        pieces = (grid.piece_of(centres), grid.tissue_id)
        places = (own, centres * mpp, around, grid.xy * mpp)
        for number, um in enumerate(self.recipe.context_um, start=1):
            disc_mean(*places, um, pieces=pieces, out=values[:, number * width : (number + 1) * width])
        of_grid = {"n_grid_tiles": len(grid.xy), "grid_centre": centre, "grid_spread": spread}
        return values, of_grid | {"tissue_id": pieces[0]}

    def _side_by_side(self, fields: Sequence[Floats], *, n_blocks: int) -> Floats:
        """Fields of view (n_places, n_features) side by side, the first of so many blocks of columns."""
        width = sum(field.shape[1] for field in fields)
        values = roomy_array((len(fields[0]), n_blocks * width), cache_folder(self.cache_dir))
        for rows in _blocks(len(values)):
            values[rows, :width] = np.concatenate([field[rows] for field in fields], axis=1)
            for mapped in (values, *fields):
                let_go(mapped)
        return values

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

    def _fields(self, wsi: WSIData, xy: NDArray[np.float64], what: str) -> list[Floats]:
        """Features (n_places, n_features) of each field of view, from the cache where they are there."""
        folder = cache_folder(self.cache_dir) / "features"
        return [
            cached_features(
                folder / f"{self._key(wsi, xy, side_um)}.npy",
                len(xy),
                partial(_read, wsi, xy, side_um, self.encoder.patch_px),
                self.encoder,
                batch_size=self.batch_size,
                device=self.device,
                num_workers=self.num_workers,
                label=f"{self.encoder.name}, {side_um:g} µm, {what}",
            )
            for side_um in self.recipe.patch_um
        ]

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


def _robust(features: Floats) -> tuple[Floats, Floats]:
    """Median and spread of each feature over the tissue, (n_features,), that a few odd patches do not move."""
    parts = [_robust_part(features[:, start : start + _COLUMNS]) for start in range(0, features.shape[1], _COLUMNS)]
    centres, spreads = zip(*parts, strict=True)
    return np.concatenate(centres), np.concatenate(spreads)


def _robust_part(features: Floats) -> tuple[Floats, Floats]:
    """The same of a few features, of which some copies are made."""
    centre = np.median(features, axis=0)
    spread = _OF_NORMAL * np.median(np.abs(features - centre), axis=0)
    return centre, np.maximum(np.maximum(spread, _LEAST_SHARE * features.std(axis=0)), _LEAST_SPREAD)


def _blocks(n_rows: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, n_rows, _ROWS)]


def _read(wsi: WSIData, xy: NDArray[np.float64], side_um: float, patch_px: int, some: slice) -> NDArray[np.uint8]:
    return read_patches(wsi, xy[some], side_um=side_um, patch_px=patch_px)


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

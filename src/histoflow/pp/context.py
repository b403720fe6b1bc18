"""Context for embeddings that came without one: the mean of the patches around each place, within radii in µm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree

from histoflow._errors import EncoderMismatchError, MissingSlotError, NotFiniteError, OptionError, SlideMismatchError
from histoflow._files import let_go, value_hash
from histoflow._keys import EMBEDDINGS, SPATIAL_UM, TISSUE, UNS, check_section, facts, section_name

Floats = NDArray[np.float32]

_BLOCK = 1 << 12
"""Places averaged at a time, so that memory follows the result and not the neighbourhoods."""


def add_context(
    section: AnnData,
    encoder: str,
    context_um: Sequence[float] = (125.0, 250.0, 500.0, 1000.0),
    *,
    around: AnnData | None = None,
) -> AnnData:
    """Widen embeddings by the mean of the patches around each place, in place.

    A row depends on the place and on the patches of `around` alone, those of the same piece of tissue where
    ``obs["tissue_id"]`` tells the pieces. A section that was joined to counts holds only
    some patches of its slide: give the same file read without counts as `around`, or rows will depend on which spots
    were kept.

    Parameters
    ----------
    section
        A section with ``obsm[encoder]``, (n_spots, n_features), and ``obsm["spatial_um"]``, (n_spots, 2), x, y in µm.
    encoder
        ``obsm`` slot of the embeddings.
    context_um
        Radii in µm within which patches are averaged, each a block of columns.
    around
        All patches of the same slide, embedded the same way and without context; None for the section's own. A place
        without any of them within a radius has its own embedding as its mean.

    Returns
    -------
    The same section: ``obsm[encoder]`` float32, (n_spots, n_features × (1 + n_radii)), own features first, then their
    means in the order of `context_um`; its record in ``uns["histoflow"]["embeddings"]`` with `context_um` and an `id`
    that follows from the former one and the radii.

    Raises
    ------
    OptionError
        If there is no radius, one that is not above 0, or the embeddings have a context already.
    MissingSlotError
        If places, embeddings or the record of how they were made are missing.
    EncoderMismatchError, SlideMismatchError
        If `around` was embedded another way, or is of another slide.
    NotFiniteError
        If an embedding holds NaN or infinity.

    Examples
    --------
    >>> section = add_context(hf.read_features("uni/TENX95.h5", encoder="uni"), "uni")  # doctest: +SKIP
    """
    radii = _radii(context_um)
    own, made = _embedded(section, encoder)
    pool, pool_made = (own, made) if around is None else _embedded(around, encoder)
    if around is not None:
        _check_around(section, around, made, pool_made)
    xy_um = _places(section)
    pool_um = xy_um if around is None else _places(around)
    pieces = (_pieces(section), _pieces(section if around is None else around))
    means = [disc_mean(own, xy_um, pool, pool_um, radius, pieces=pieces) for radius in radii]
    section.obsm[encoder] = np.concatenate([own, *means], axis=1)
    widened = {**made, "context_um": radii, "id": _id(made, radii), "n_context_patches": len(pool)}
    section.uns[UNS][EMBEDDINGS] = {**facts(section)[EMBEDDINGS], encoder: widened}
    return section


def disc_mean(
    own: Floats,
    xy_um: NDArray[np.float64],
    around: Floats,
    around_um: NDArray[np.float64],
    radius_um: float,
    *,
    pieces: tuple[NDArray[Any], NDArray[Any]] | None = None,
    out: Floats | None = None,
) -> Floats:
    """Mean features of the patches within a radius of each place; the place's own where there are none.

    Parameters
    ----------
    own
        Features of the places, shape (n_places, n_features).
    xy_um
        The places, shape (n_places, 2), x, y in µm.
    around
        Features of the patches that are averaged, shape (n_patches, n_features).
    around_um
        Their centres, shape (n_patches, 2), x, y in µm from the same origin.
    radius_um
        Radius in µm; a patch at just that distance counts.
    pieces
        The piece of tissue of each place, shape (n_places,), and of each patch, shape (n_patches,): no patch of
        another piece counts. None where all is one piece.
    out
        Where to write, shape (n_places, n_features), float32; None for a new array.

    Returns
    -------
    Shape (n_places, n_features), float32.
    """
    if pieces is not None:
        xy_um, around_um = _apart(xy_um, around_um, pieces, radius_um)
    tree = KDTree(around_um)
    means = np.empty(own.shape, dtype=np.float32) if out is None else out
    for start in range(0, len(xy_um), _BLOCK):
        rows = slice(start, start + _BLOCK)
        means[rows] = _block_mean(own[rows], tree, xy_um[rows], around, radius_um)
        let_go(means)
    return means


def _apart(
    xy_um: NDArray[np.float64],
    around_um: NDArray[np.float64],
    pieces: tuple[NDArray[Any], NDArray[Any]],
    radius_um: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places and patches with a third coordinate that keeps different pieces farther apart than the radius."""
    codes = np.unique(np.concatenate(pieces), return_inverse=True)[1] * (2.0 * radius_um)
    return np.column_stack([xy_um, codes[: len(xy_um)]]), np.column_stack([around_um, codes[len(xy_um) :]])


def _block_mean(own: Floats, tree: KDTree, xy_um: NDArray[np.float64], around: Floats, radius_um: float) -> Floats:
    near = tree.query_ball_point(xy_um, radius_um, return_sorted=True)
    n_near = np.array([len(patches) for patches in near])
    weights = np.repeat(1.0 / np.maximum(n_near, 1), n_near)
    columns = np.concatenate([np.asarray(patches, dtype=np.int64) for patches in near])
    mean = csr_matrix((weights, columns, np.r_[0, np.cumsum(n_near)]), shape=(len(own), len(around))) @ around
    return np.where(n_near[:, None] > 0, mean, own).astype(np.float32)


def _radii(context_um: Sequence[float]) -> list[float]:
    radii = [float(radius) for radius in context_um]
    if not radii or not all(0 < radius < np.inf for radius in radii):
        raise OptionError(f"context_um is {context_um!r}; give one radius or more, each in µm and above 0")
    return radii


def _pieces(section: AnnData) -> NDArray[np.str_]:
    """The piece of tissue of each spot, (n_spots,); one for all where none is told."""
    return section.obs[TISSUE].to_numpy(dtype=str) if TISSUE in section.obs else np.full(section.n_obs, "")


def _places(section: AnnData) -> NDArray[np.float64]:
    return np.asarray(section.obsm[SPATIAL_UM], dtype=np.float64)


def _embedded(section: AnnData, encoder: str) -> tuple[Floats, Mapping[str, Any]]:
    """Embeddings (n_spots, n_features) that have no context yet, and how they were made."""
    check_section(section, needs=[SPATIAL_UM, UNS, encoder])
    made: Mapping[str, Any] = facts(section).get(EMBEDDINGS, {}).get(encoder, {})
    if "id" not in made:
        raise MissingSlotError(
            f'section {section_name(section)} does not record in uns["{UNS}"]["{EMBEDDINGS}"] how its {encoder} '
            "embeddings were made; hf.read_features and hf.embed record it"
        )
    if len(made.get("context_um", ())):
        told = ", ".join(f"{radius:g}" for radius in made["context_um"])
        raise OptionError(
            f"the {encoder} embeddings of section {section_name(section)} already have a context of {told} µm; "
            "read them anew to give them another"
        )
    values = np.asarray(section.obsm[encoder], dtype=np.float32)
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise NotFiniteError(
            f"section {section_name(section)}: {bad} of {len(values)} {encoder} embeddings hold NaN or infinity, "
            "which a mean would spread; leave these spots out"
        )
    return values, made


def _check_around(section: AnnData, around: AnnData, made: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    names = section_name(section), section_name(around)
    if made["id"] != other["id"]:
        raise EncoderMismatchError(
            f"around ({names[1]}) holds embeddings of another encoder or patch size than section {names[0]} "
            f"(id {other['id']}, wanted {made['id']}); give patches embedded the same way"
        )
    if facts(section).get("slide_id") != facts(around).get("slide_id"):
        raise SlideMismatchError(
            f"around ({names[1]}) is of another slide than section {names[0]}; give patches of the section's own slide"
        )


def _id(made: Mapping[str, Any], radii: list[float]) -> str:
    return value_hash({"id": str(made["id"]), "context_um": radii, "context_of": "patches"})[:12]

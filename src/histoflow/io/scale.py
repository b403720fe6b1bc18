"""The scale of a slide in µm per pixel: what was given, what the file says, what the spot array implies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histoflow._errors import OptionError, ResolutionError, ScaleWarning

VISIUM_PITCH_UM = 100.0
"""Distance between neighbouring Visium spots, centre to centre."""
ST_PITCH_UM = 200.0
"""Distance between neighbouring legacy ST spots along a row, on the 1k and the 2k array alike."""

_PLAUSIBLE_UM = (0.05, 20.0)
_ANISOTROPIC = 0.03
_LARGEST_STATED = 1e6
_CONTRADICTION = 0.05
# Beyond this the array positions are not of the layout assumed (stretched scans stay near 1.1).
_LARGEST_ASPECT = 1.3
_RESIDUAL = 0.2
# The smallest printed layout, ST 1k: 33 columns and 35 rows.
_ST_1K = 35
_PARITY_EVIDENCE = 9
_CLAIMS = {
    "metadata": "its metadata say",
    "scalefactors": "its scale factors say",
    "pitch": "the pitch of its spot array says",
}


@dataclass(frozen=True)
class Scale:
    """Size of a level-0 pixel along image x and y, in µm, and where it is known from.

    Parameters
    ----------
    mpp_x, mpp_y
        µm per pixel along image x (to the right) and y (down).
    source
        ``"given"``, ``"metadata"`` (of the slide), ``"scalefactors"`` (of the reads' pipeline) or ``"pitch"``.
    """

    mpp_x: float
    mpp_y: float
    source: str

    @property
    def anisotropic(self) -> bool:
        """Whether x and y are more than 3 % apart."""
        return _apart(self.mpp_x, self.mpp_y) > _ANISOTROPIC

    @property
    def mean(self) -> float:
        """Geometric mean of both axes, in µm per pixel."""
        return math.sqrt(self.mpp_x * self.mpp_y)

    def resized(self, factor: ArrayLike) -> Scale:
        """The scale of an image whose sides are `factor`, one number or (x, y), times as many pixels."""
        factor_x, factor_y = (float(f) for f in np.broadcast_to(np.asarray(factor, dtype=float), 2))
        return Scale(self.mpp_x / factor_x, self.mpp_y / factor_y, self.source)

    def differs(self, other: Scale) -> bool:
        """Whether the two are more than 5 % apart on either axis."""
        return max(_apart(self.mpp_x, other.mpp_x), _apart(self.mpp_y, other.mpp_y)) > _CONTRADICTION

    def __str__(self) -> str:
        return f"{self.mpp_x:.4g} (x) and {self.mpp_y:.4g} (y) µm per pixel"


def _apart(a: float, b: float) -> float:
    return max(a, b) / min(a, b) - 1


def is_plausible(scale: Scale) -> bool:
    """Whether both axes lie in 0.05–20 µm per pixel, as tissue images do and screen resolutions do not."""
    low, high = _PLAUSIBLE_UM
    return all(low <= mpp <= high for mpp in (scale.mpp_x, scale.mpp_y))


def given_scale(mpp: float | tuple[float, float] | None) -> Scale | None:
    """The scale a user passes: one number of µm per pixel, or a pair (x, y).

    Raises
    ------
    OptionError
        If it is not one or two numbers, or lies outside 0.05–20 µm per pixel.
    """
    if mpp is None:
        return None
    try:
        mpp_x, mpp_y = (float(m) for m in np.broadcast_to(np.asarray(mpp, dtype=float), 2))
    except (TypeError, ValueError) as err:
        raise OptionError(f"mpp must be a number of µm per pixel or a pair (x, y), got {mpp!r}") from err
    scale = Scale(mpp_x, mpp_y, "given")
    if not is_plausible(scale):
        low, high = _PLAUSIBLE_UM
        raise OptionError(f"mpp is in µm per pixel and must lie between {low} and {high:g}, got {mpp!r}")
    return scale


def choose_scale(
    slide: str,
    *,
    given: Scale | None = None,
    metadata: Scale | None = None,
    stated: Scale | None = None,
    pitch: Scale | None = None,
) -> Scale:
    """Choose among the sources of a slide's scale: given, the file's metadata, the pipeline's figure, the array pitch.

    Parameters
    ----------
    slide
        Name of the slide, for texts.
    given, metadata, stated, pitch
        The scale by source, `stated` by the pipeline that wrote the spots; None where it is not known.

    Raises
    ------
    ResolutionError
        If no source knows the scale, or two are more than 5 % apart and none was given.

    Warns
    -----
    ScaleWarning
        If the given scale is more than 5 % from another source, or x and y are more than 3 % apart.
    """
    chosen = given or metadata or stated or pitch
    if chosen is None:
        raise ResolutionError(
            f"the scale of {slide} is unknown: neither its metadata nor a spot array tell it; "
            "give µm per pixel with mpp= (--mpp, or the manifest's column mpp)"
        )
    for other in (metadata, stated, pitch):
        if other is None or not chosen.differs(other):
            continue
        if given is None:
            raise ResolutionError(
                f"the scale of {slide} is contradictory: {_CLAIMS[chosen.source]} {chosen}, "
                f"{_CLAIMS[other.source]} {other}; give the right one with mpp= (--mpp, or the manifest's column mpp)"
            )
        _warn(f"{slide}: the given {given} is used, although its {other.source} says {other}")
    if chosen.anisotropic:
        _warn(f"{slide}: pixels are not square, {chosen} from {chosen.source}; both are kept")
    return chosen


def _warn(text: str) -> None:
    warnings.warn(text, ScaleWarning, stacklevel=3)


def stated_scale(scalefactors: Mapping[str, Any], source: str) -> Scale | None:
    """The scale of the full-resolution image as Space Ranger's scale factors state it, for Visium HD only.

    Parameters
    ----------
    scalefactors
        By name; ``microns_per_pixel`` is looked at.
    source
        Where they come from, for texts.

    Raises
    ------
    ResolutionError
        If the figure is no plausible scale.
    """
    stated = scalefactors.get("microns_per_pixel")
    if stated is None:
        return None
    is_number = isinstance(stated, int | float | np.number) and 0 < stated < _LARGEST_STATED
    scale = Scale(float(stated), float(stated), "scalefactors") if is_number else None
    if scale is None or not is_plausible(scale):
        low, high = _PLAUSIBLE_UM
        raise ResolutionError(
            f"{source}: microns_per_pixel is {str(stated)[:40]}, which is no scale of a slide (wanted {low} to "
            f"{high:g}); correct the scale factors"
        )
    return scale


def fit_pitch(array_xy: ArrayLike, pixel_xy: ArrayLike, um_per_index: ArrayLike) -> Scale | None:
    """Scale of an image from the known spacing of the spot array in it.

    A least-squares affine map from array positions in µm to pixels, ``pixel = M um + shift``; a rotated or mirrored
    array keeps the norms of the rows of M, so µm per pixel along image x and y are one over those.

    Parameters
    ----------
    array_xy
        Array positions (n_spots, 2), column then row, in index steps.
    pixel_xy
        The same spots in the image (n_spots, 2), x, y in pixels from the upper left corner.
    um_per_index
        µm per index step: one number, or (per column, per row).

    Returns
    -------
    The scale, or None where fewer than three spots, or only spots in one line, leave it open.

    Raises
    ------
    ResolutionError
        If the spots do not lie on such an array, or x and y come out more than 30 % apart.
    """
    steps = np.broadcast_to(np.asarray(um_per_index, dtype=float), 2)
    um = np.asarray(array_xy, dtype=float).reshape(-1, 2) * steps
    pixels = np.asarray(pixel_xy, dtype=float).reshape(-1, 2)
    design = np.column_stack([um - um.mean(axis=0), np.ones(len(um))]) if len(um) else np.empty((0, 3))
    if len(um) < 3 or np.linalg.matrix_rank(design) < 3:
        return None
    solution = np.linalg.lstsq(design, pixels, rcond=None)[0]
    px_per_um = np.linalg.norm(solution[:2], axis=0)
    residual_px = np.sqrt(((pixels - design @ solution) ** 2).mean(axis=0))
    if not (residual_px < _RESIDUAL * steps.max() * px_per_um).all():
        raise ResolutionError(
            f"spot pixels do not follow the array positions: {residual_px[0]:.3g} (x) and {residual_px[1]:.3g} (y) "
            "pixels off on average; check that both columns belong to the same spots"
        )
    scale = Scale(float(1 / px_per_um[0]), float(1 / px_per_um[1]), "pitch")
    if _apart(scale.mpp_x, scale.mpp_y) > _LARGEST_ASPECT - 1:
        raise ResolutionError(
            f"the spot array implies {scale}, too far apart for one image: "
            "this is not the assumed layout; give mpp= and leave the array columns out"
        )
    return scale


def nearest_pitch(pixel_xy: NDArray[np.float64], pitch_um: float) -> Scale | None:
    """Scale of an image in which neighbouring spots, of unknown array position, lie `pitch_um` apart.

    Parameters
    ----------
    pixel_xy
        Spot centres (n_spots, 2), x, y in pixels.
    pitch_um
        Distance of neighbouring spots, centre to centre, in µm.

    Returns
    -------
    An isotropic scale, or None with fewer than three spots.
    """
    distance_px = nearest_distance(pixel_xy)
    if len(pixel_xy) < 3 or not distance_px > 0:
        return None
    return Scale(pitch_um / distance_px, pitch_um / distance_px, "pitch")


def nearest_distance(xy: NDArray[np.float64]) -> float:
    """Median distance of each point (n_spots, 2) to its nearest other point, NaN for a single point."""
    from scipy.spatial import KDTree

    if len(xy) < 2:
        return math.nan
    rows, counts = distinct_places(xy)
    distance = np.zeros(len(rows)) if len(rows) == 1 else KDTree(xy[rows]).query(xy[rows], k=2)[0][:, 1]
    return float(np.median(np.repeat(np.where(counts > 1, 0, distance), counts)))


def distinct_places(xy: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each place of points (n_points, 2), in their order, and how many rows it has, both (n_places,).

    For trees, which compare all points of one place with each other.
    """
    as_complex = np.ascontiguousarray(xy, dtype=np.float64).view(np.complex128)[:, 0]
    _, first, counts = np.unique(as_complex, return_index=True, return_counts=True, equal_nan=False)
    order = np.argsort(first)
    return first[order], counts[order]


def visium_step(pitch_um: float | None = None) -> tuple[float, float]:
    """µm per array column and per array row of Visium's hexagonal lattice (50 and 86.6 at a pitch of 100 µm)."""
    pitch = VISIUM_PITCH_UM if pitch_um is None else pitch_um
    return pitch / 2, pitch * math.sqrt(3) / 2


def st_step(array_xy: NDArray[np.float64], pitch_um: float | None = None) -> float | None:
    """µm per index step of a legacy ST array, told from its own layout.

    The 1k array has a spot at every index of a grid of 33 × 35, one pitch per step; the 2k array is a checkerboard
    (both indices odd, or both even), one pitch per **two** steps.

    Parameters
    ----------
    array_xy
        Array positions (n_spots, 2) of the whole spot table.
    pitch_um
        Distance of neighbouring spots along a row in µm; None for the 200 µm of both arrays.

    Returns
    -------
    The step, or None where the table is too small to tell, or is neither array and no pitch was given.
    """
    index = np.rint(array_xy).astype(np.int64)
    if len(np.unique(index.sum(axis=1) % 2)) < 2:
        return (pitch_um or ST_PITCH_UM) / 2 if len(index) >= _PARITY_EVIDENCE else None
    if pitch_um is None and np.ptp(index, axis=0).max() >= _ST_1K:
        return None
    return pitch_um or ST_PITCH_UM

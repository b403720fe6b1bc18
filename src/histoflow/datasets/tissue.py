"""Synthetic tissue: latent fields that drive everything, and the H&E picture of them; knows no genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoflow.datasets.fields import disc_mean, smooth_noise

UM_PER_PX = 8.0
"""Side of a pixel of the latent fields, in µm."""
NICHE_UM = 275.0
"""Radius within which the infiltrate is averaged to give the niche, in µm."""
FIELDS = ("cellularity", "fibres", "eosin", "infiltrate", "niche")
"""The latent fields, in the order of their first axis. All but `niche` are drawn; `niche` is seen only in context."""


@dataclass(frozen=True)
class Tissue:
    """What a section is made of, on a grid of 8 µm; the grid's first pixel lies in the slide's upper left corner.

    Parameters
    ----------
    fields
        Shape (n_fields, height, width), in the order of `FIELDS`, float32; mean 0 and variance 1 on the tissue.
    depth
        Shape (height, width): above 0 on the tissue, below on the glass, about 1 in the middle.
    angle
        Direction of the fibres in radians from x towards y, shape (height, width).
    """

    fields: np.ndarray
    depth: np.ndarray
    angle: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Where there is tissue, shape (height, width)."""
        return self.depth > 0

    def field(self, name: str) -> np.ndarray:
        """One latent field, shape (height, width)."""
        found: np.ndarray = self.fields[FIELDS.index(name)]
        return found


def grow(rng: np.random.Generator, size_um: tuple[int, int], radius_um: float) -> Tissue:
    """Draw the tissue of one section.

    Parameters
    ----------
    rng
        Source of randomness.
    size_um
        Width and height of the slide in µm.
    radius_um
        Mean radius of the tissue in µm.
    """
    shape = (round(size_um[1] / UM_PER_PX), round(size_um[0] / UM_PER_PX))

    def noise(scale_um: float) -> np.ndarray:
        return smooth_noise(rng, shape, scale_um / UM_PER_PX)

    depth = _outline(shape, radius_um, coarse=noise(240), fine=noise(60))
    mask = depth > 0
    drawn = _uncorrelated(np.stack([noise(140), noise(150), noise(150)]), mask)
    infiltrate, niche = _infiltrate(noise(55), drawn, mask)
    fields = np.stack([*drawn, _standard(infiltrate, mask), _standard(niche, mask)])
    angle = rng.uniform(0, np.pi) + 0.9 * noise(220)
    return Tissue(fields.astype(np.float32), depth.astype(np.float32), angle.astype(np.float32))


def _outline(shape: tuple[int, int], radius_um: float, *, coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Depth below an irregular oval in the middle of the slide."""
    y, x = (np.indices(shape) + 0.5) * UM_PER_PX
    r = np.hypot((x - x.mean()) * 0.93, (y - y.mean()) * 1.07) / radius_um
    outline: np.ndarray = 1 - r + 0.10 * coarse + 0.035 * fine
    return outline


def _standard(field: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = field[mask]
    standard: np.ndarray = (field - inside.mean()) / inside.std()
    return standard


def _uncorrelated(fields: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fields of mean 0, variance 1 and no correlation on the mask, each as near as can be to the one it came from."""
    fields = np.stack([_standard(field, mask) for field in fields])
    values, vectors = np.linalg.eigh(np.cov(fields[:, mask]))
    whiten = vectors / np.sqrt(values) @ vectors.T
    return np.tensordot(whiten, fields, axes=1)


def _infiltrate(noise: np.ndarray, drawn: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The infiltrate and its mean over the niche, freed from what would correlate the niche with the drawn fields."""

    def niche(field: np.ndarray) -> np.ndarray:
        return disc_mean(field, mask, NICHE_UM / UM_PER_PX)

    def shared(field: np.ndarray) -> np.ndarray:
        together: np.ndarray = drawn[:, mask] @ field[mask]
        return together

    share = np.linalg.solve(np.stack([shared(niche(field)) for field in drawn], axis=1), shared(niche(noise)))
    infiltrate = noise - np.tensordot(share, drawn, axes=1)
    return infiltrate, niche(infiltrate)

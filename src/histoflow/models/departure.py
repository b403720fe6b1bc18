"""Departure: how measured sections differ from what is expected of them, so that draws look like tissue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histoflow.models.arrays import Arrays
from histoflow.models.noise import Drawn, normal_noise, shelved
from histoflow.models.spots import Floats, Spots
from histoflow.pp.graph import neighbors

Doubles = NDArray[np.float64]

_N_NEAR = 4
_FARTHER = 2.0
"""Pairs of spots up to so many times as far apart as nearest ones tell how fast fields change."""
_SHORTEST, _LONGEST = 0.5, 20.0
"""Bounds of the reach of the fields, in spot pitches."""
_N_WAVES = 256
_LEAST_PAIRS = 16
_LEAST_VALUE = 1e-10


@dataclass(frozen=True)
class Departure:
    """A Gaussian field shared by neighbouring spots and by genes, and noise of every spot, correlated between genes.

    The covariance of the residuals of two spots at distance d is ``field @ field.T * exp(-d / reach)``, and for a spot
    with itself ``noise @ noise.T`` more (the linear model of coregionalisation, exponential covariance).

    Attributes
    ----------
    field
        Shape (n_genes, n_genes), log1p.
    noise
        Shape (n_genes, n_genes), log1p.
    reach
        In spot pitches of the training sections.
    """

    field: Floats
    noise: Floats
    reach: float

    @classmethod
    def fit(cls, residuals: Sequence[Floats], sections: Sequence[Spots], pitch_um: float) -> Departure:
        """Estimate it from residuals of spots that the expectation had not learned from, by their moments.

        Parameters
        ----------
        residuals
            Measured less expected log1p expression of each section, shapes (n_spots, n_genes); NaN rows are left out.
        sections
            Their places.
        pitch_um
            Unit of distance.
        """
        centred = [rows - np.nanmean(rows, axis=0, dtype=np.float64) for rows in residuals]
        here = _covariance(np.concatenate(centred))
        near, far = _Lag.empty(here.shape[0]), _Lag.empty(here.shape[0])
        for rows, spots in zip(centred, sections, strict=True):
            near, far = (lag.plus(found) for lag, found in zip((near, far), _lags(rows, spots, pitch_um), strict=True))
        reach = _reach(near, far)
        shared = _nearest_covariance(near.covariance * np.exp(near.distance / reach), ceiling=here)
        return cls(_root(shared), _root(here - shared), reach)

    def draw(self, spots: Spots, n_draws: int, pitch_um: float, seed: int) -> Floats:
        """Draw departures of a section, their mean over the draws zero if there are several.

        A field is a function of the place alone; noise goes to the spots by the order of their ids. So the order of the
        rows does not matter, and other spots change no field.

        Parameters
        ----------
        spots
            Their places and ids.
        n_draws
            How many; one alone is not centred.
        pitch_um
            Unit of distance, as in `fit`.
        seed
            Of the fields and the noise.

        Returns
        -------
        Shape (n_draws, n_spots, n_genes), log1p, float32.
        """
        place = np.empty((n_draws, len(spots), len(self.noise)), np.float32)
        noise = shelved(place, self.noise_of(spots.ids, n_draws, seed))
        return self.at(spots.xy_um / pitch_um, noise, n_draws, seed)

    def noise_of(self, ids: NDArray[np.str_], n_draws: int, seed: int) -> Drawn:
        """Noise of places by their ids (n_spots,), before genes share it."""
        return normal_noise(np.random.default_rng([seed, 2]), ids, (n_draws, len(self.noise)))

    def at(self, xy: Doubles, noise: Iterable[Floats], n_draws: int, seed: int) -> Floats:
        """Departures of some places of a section: as `draw`.

        Parameters
        ----------
        xy
            The places, shape (n_spots, 2), in pitches.
        noise
            From `noise_of`, for every draw of these places, shape (n_spots, n_genes).
        n_draws, seed
            As in `draw`.
        """
        of_fields = np.random.default_rng([seed, 1])
        drawn = np.empty((n_draws, len(xy), len(self.noise)), np.float32)
        for place, own in zip(drawn, noise, strict=True):
            waves = _waves(xy, len(self.field), self.reach, of_fields)
            place[:] = waves @ self.field.T + own @ self.noise.T
        if n_draws > 1:
            drawn -= drawn.mean(axis=0)
            drawn *= np.sqrt(n_draws / (n_draws - 1))
        return drawn

    def arrays(self) -> Arrays:
        """The numbers, by name, for a file."""
        return {"field": self.field, "noise": self.noise, "reach": np.array([self.reach])}

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Departure:
        """Make a departure of what `arrays` returned."""
        return cls(arrays["field"], arrays["noise"], float(arrays["reach"][0]))


@dataclass(frozen=True)
class _Lag:
    """Products of residuals of two spots: how many pairs, their mean distance in pitches, the mean product."""

    n_pairs: int
    distance: float
    covariance: Doubles

    @classmethod
    def empty(cls, n_genes: int) -> _Lag:
        return cls(0, 0.0, np.zeros((n_genes, n_genes)))

    def plus(self, other: _Lag) -> _Lag:
        n_pairs = self.n_pairs + other.n_pairs
        own = self.n_pairs / n_pairs if n_pairs else 0.0
        distance = own * self.distance + (1 - own) * other.distance
        return _Lag(n_pairs, distance, own * self.covariance + (1 - own) * other.covariance)


def _lags(rows: Doubles, spots: Spots, pitch_um: float) -> tuple[_Lag, _Lag]:
    """Pairs of nearest spots, and of such that are up to twice as far apart."""
    graph = neighbors(spots.xy_um / pitch_um, 3 * _N_NEAR, groups=spots.tissue)
    first = np.repeat(np.arange(len(rows)), graph.index.shape[1]).reshape(graph.index.shape)
    apart = np.linalg.norm(spots.xy_um[first] - spots.xy_um[graph.index], axis=-1) / pitch_um
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    known = graph.mask & finite[first] & finite[graph.index]
    nearest = np.zeros_like(known)
    nearest[:, :_N_NEAR] = True
    farther = known & ~nearest & (apart <= _FARTHER * np.median(apart[:, 0]))
    near, far = (_lag(rows, first[part], graph.index[part], apart[part]) for part in (known & nearest, farther))
    return near, far


def _lag(rows: Doubles, first: NDArray[np.intp], second: NDArray[np.int64], apart: Doubles) -> _Lag:
    if not len(first):
        return _Lag.empty(rows.shape[1])
    product = rows[first].T @ rows[second] / len(first)
    return _Lag(len(first), float(apart.mean()), (product + product.T) / 2)


def _covariance(rows: Doubles) -> Doubles:
    finite = rows[np.isfinite(rows).all(axis=1)]
    covariance: Doubles = finite.T @ finite / len(finite)
    return covariance


def _reach(near: _Lag, far: _Lag) -> float:
    """How far fields reach, from how much less two spots share the farther apart they are."""
    shared = np.trace(near.covariance), np.trace(far.covariance)
    if min(near.n_pairs, far.n_pairs) < _LEAST_PAIRS or shared[0] <= 0:
        return _SHORTEST
    if not 0 < shared[1] < shared[0]:
        return _LONGEST if shared[1] > 0 else _SHORTEST
    reach = (far.distance - near.distance) / np.log(shared[0] / shared[1])
    return float(np.clip(reach, _SHORTEST, _LONGEST))


def _nearest_covariance(matrix: Doubles, *, ceiling: Doubles) -> Doubles:
    """The part of a symmetric matrix that is a covariance, and no more than another one in any direction."""
    values, axes = np.linalg.eigh(ceiling)
    kept = values > _LEAST_VALUE * max(float(values[-1]), 0.0)
    root = axes[:, kept] * np.sqrt(values[kept])
    inverse = axes[:, kept] / np.sqrt(values[kept])
    shares, own = np.linalg.eigh(inverse.T @ matrix @ inverse)
    within: Doubles = root @ (own * np.clip(shares, 0.0, 1.0)) @ own.T @ root.T
    return within


def _root(covariance: Doubles) -> Floats:
    values, axes = np.linalg.eigh((covariance + covariance.T) / 2)
    root: Floats = (axes * np.sqrt(np.maximum(values, 0.0))).astype(np.float32)
    return root


def _waves(xy: Doubles, n_fields: int, reach: float, generator: np.random.Generator) -> Floats:
    """Fields with covariance ``exp(-d / reach)`` at places (n_spots, 2): (n_spots, n_fields), as sums of waves.

    Rahimi & Recht, Random features for large-scale kernel machines, NeurIPS 2007; the spectrum of the exponential
    covariance in the plane is that of a bivariate Cauchy distribution.
    """
    heavy = np.abs(generator.standard_normal((_N_WAVES, 1)))
    frequencies = generator.standard_normal((_N_WAVES, 2)) / (heavy * reach)
    phases = generator.uniform(0, 2 * np.pi, _N_WAVES)
    amplitudes = generator.standard_normal((_N_WAVES, n_fields)) * np.sqrt(2 / _N_WAVES)
    waves: Floats = (np.cos(xy @ frequencies.T + phases) @ amplitudes).astype(np.float32)
    return waves

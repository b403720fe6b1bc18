"""The anchor: what an image alone says of a spot, in closed form, by ridges on similarities to the training spots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from histoflow.models.arrays import Arrays, named, under
from histoflow.models.axes import leading_axes
from histoflow.models.inner import InnerFolds
from histoflow.models.linear import LinearHead
from histoflow.models.member import Projection
from histoflow.models.normal_equations import NormalEquations, fit_strength
from histoflow.models.side_by_side import side_by_side
from histoflow.models.spots import Floats
from histoflow.models.views import Columns

ALPHAS = np.logspace(-2, 3, 16)
"""Strengths tried: the variance of the noise in units of that of the signal."""
WHITENING = 0.5
"""How far principal components are made equal, see `Projection.fit`: strong ones lead, weak ones are heard."""
_MOST_LANDMARKS = 2048
_REACH = 2.0
"""Distance at which similarity has fallen to 1 / e, in root mean squares of that of two training spots."""
_LEAST_VALUE = 1e-9
_MANY_SPOTS = 500
"""Above so many it takes longer to fit a view than to arrange that several are fitted beside each other."""
_HEAD, _PROJECTION = "head/", "projection/"
_COLUMNS, _LANDMARKS, _ROOT, _ALPHA = "columns", "landmarks", "root", "alpha"


def low_rank(log1p: Floats, n_factors: int, *, rows: NDArray[np.intp] | None = None) -> Floats:
    """Expression as far as few patterns over the spots, shared by the genes, tell it: counting noise is in no pattern.

    Parameters
    ----------
    log1p
        Expression of the training spots, shape (n_spots, n_genes), log1p on any one scale.
    n_factors
        Patterns kept: the strongest principal components of genes brought to one spread. As many as there are genes
        change nothing.
    rows
        The spots from which patterns are learned; None for all of them.

    Returns
    -------
    Shape (n_spots, n_genes), float32.
    """
    learned = log1p if rows is None else log1p[rows]
    mean, spread = learned.mean(axis=0, dtype=np.float64), learned.std(axis=0, dtype=np.float64)
    spread = np.maximum(spread, _LEAST_VALUE)
    standard = (log1p - mean) / spread
    _, axes = leading_axes(standard if rows is None else standard[rows], n_factors)
    told: Floats = (mean + standard @ axes.T @ axes * spread).astype(np.float32)
    return told


@dataclass(frozen=True)
class Similarity:
    """Coordinates in which a dot product is the similarity of two spots, ``exp(-distance / reach)``.

    With many training spots, similarity to a part of them stands for similarity to all (Williams & Seeger, Using the
    Nyström method to speed up kernel machines, NeurIPS 2001).

    Attributes
    ----------
    landmarks
        Training spots on their principal components, shape (n_landmarks, n_components).
    root
        From similarities to the landmarks to coordinates, shape (n_landmarks, n_coordinates).
    """

    landmarks: Floats
    root: Floats

    @classmethod
    def fit(cls, components: Floats, seed: int) -> Similarity:
        """Choose the landmarks among training spots (n_spots, n_components): all, or so many at random."""
        chosen = np.arange(len(components))
        if len(chosen) > _MOST_LANDMARKS:
            chosen = np.sort(np.random.default_rng(seed).choice(chosen, _MOST_LANDMARKS, replace=False))
        landmarks = components[chosen]
        values, axes = np.linalg.eigh(_similarity(landmarks, landmarks))
        kept = values > _LEAST_VALUE * values[-1]
        return cls(landmarks, (axes[:, kept] / np.sqrt(values[kept])).astype(np.float32))

    def __call__(self, components: Floats) -> Floats:
        """Map spots (n_spots, n_components) to (n_spots, n_coordinates), float32."""
        coordinates: Floats = _similarity(components, self.landmarks).astype(np.float32) @ self.root
        return coordinates


@dataclass(frozen=True)
class ViewHead:
    """Expression of a spot from one view of its embedding.

    Attributes
    ----------
    columns
        Of the embedding, shape (n_columns,), see `views.views_of`.
    projection
        Of these columns, onto principal components.
    similarity
        To the training spots.
    head
        From similarity to log1p expression.
    alpha
        Strength of the ridge behind the head.
    """

    columns: Columns
    projection: Projection
    similarity: Similarity
    head: LinearHead
    alpha: float

    def predict(self, embedding: Floats) -> Floats:
        """Map embeddings (n_spots, n_features) to log1p expression, (n_spots, n_genes), float32."""
        predicted: Floats = self.head.predict(self.coordinates(embedding)).astype(np.float32)
        return predicted

    def coordinates(self, embedding: Floats) -> Floats:
        """Embeddings (n_spots, n_features) in coordinates of similarity."""
        return self.similarity(self.projection(embedding[:, self.columns]).numpy())

    def arrays(self) -> Arrays:
        """The numbers, by name, for a file."""
        return {
            **named(_PROJECTION, vars(self.projection)),
            **named(_HEAD, self.head.arrays()),
            _COLUMNS: self.columns,
            _LANDMARKS: self.similarity.landmarks,
            _ROOT: self.similarity.root,
            _ALPHA: np.array([self.alpha]),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> ViewHead:
        """Make a head of what `arrays` returned."""
        similarity = Similarity(arrays[_LANDMARKS], arrays[_ROOT])
        projection, head = Projection(**under(_PROJECTION, arrays)), LinearHead.of(under(_HEAD, arrays))
        return cls(arrays[_COLUMNS], projection, similarity, head, float(arrays[_ALPHA][0]))


@dataclass(frozen=True)
class Anchor:
    """Expression of a spot from its own embedding: the mean of what several views of it say.

    Attributes
    ----------
    views
        One head for each.
    """

    views: tuple[ViewHead, ...]

    def predict(self, embedding: Floats) -> Floats:
        """Map embeddings (n_spots, n_features) to log1p expression, (n_spots, n_genes), float32."""
        predicted: Floats = np.mean([view.predict(embedding) for view in self.views], axis=0)
        return predicted

    def arrays(self) -> Arrays:
        """The numbers, by name, for a file."""
        return {
            key: value
            for number, view in enumerate(self.views)
            for key, value in named(f"{number}/", view.arrays()).items()
        }

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Anchor:
        """Make an anchor of what `arrays` returned."""
        n_views = len({key.partition("/")[0] for key in arrays})
        return cls(tuple(ViewHead.of(under(f"{number}/", arrays)) for number in range(n_views)))


def fit_anchor(
    embedding: Floats,
    log1p: Floats,
    inner: InnerFolds,
    views: Sequence[Columns],
    *,
    n_components: int = 100,
    seed: int = 0,
) -> Anchor:
    """Fit the anchor, each ridge as strong as the inner folds ask for (kernel ridge regression; Laplacian kernel).

    Parameters
    ----------
    embedding
        Shape (n_spots, n_features).
    log1p
        Expression to learn, shape (n_spots, n_genes), log1p.
    inner
        Folds of these rows.
    views
        Columns of each view.
    n_components
        Principal components kept of a view, at most.
    seed
        Which spots are landmarks, where there are too many.

    Returns
    -------
    The anchor; its views carry the strengths that were chosen.
    """

    def fit(columns: Columns) -> ViewHead:
        looked_at = embedding[:, columns]
        projection = Projection.fit(looked_at, n_components, whitening=WHITENING)
        components = projection(looked_at).numpy()
        similarity = Similarity.fit(components, seed)
        head, alpha = fit_strength(similarity(components), log1p, inner, ALPHAS)
        return ViewHead(columns, projection, similarity, head, alpha)

    with side_by_side(worth_it=len(embedding) > _MANY_SPOTS) as run:
        return Anchor(tuple(run(fit, views)))


def held_out(
    anchor: Anchor, embedding: Floats, learned: Callable[[NDArray[np.intp]], Floats], inner: InnerFolds
) -> Floats:
    """Predictions of the training spots by anchors of the same strength that have not learned from them.

    Parameters
    ----------
    anchor
        Gives projections, landmarks and strengths.
    embedding
        Of the training spots, shape (n_spots, n_features).
    learned
        What is learned of the expression of some training spots, from their rows (n_rows,) and theirs alone: shape
        (n_rows, n_genes), log1p.
    inner
        Folds of these rows.

    Returns
    -------
    Shape (n_spots, n_genes), log1p, float32; NaN for spots that no fold holds out.
    """
    targets = [learned(train) for train, _ in inner.folds]

    def predict(view: ViewHead) -> list[Floats]:
        coordinates = view.coordinates(embedding)
        return [
            next(NormalEquations.of(coordinates[train], target).heads([view.alpha])).predict(coordinates[test])
            for (train, test), target in zip(inner.folds, targets, strict=True)
        ]

    found = np.full((len(embedding), anchor.views[0].head.coef.shape[1]), np.nan, np.float32)
    with side_by_side(worth_it=len(embedding) > _MANY_SPOTS) as run:
        by_view = list(run(predict, anchor.views))
    for (_, test), parts in zip(inner.folds, zip(*by_view, strict=True), strict=True):
        found[test] = np.mean(parts, axis=0)
    return found


def _similarity(first: Floats, second: Floats) -> NDArray[np.float64]:
    """Laplacian kernel of spots (n_first, n_components) and (n_second, n_components), whose mean square is 1."""
    similarity: NDArray[np.float64] = np.exp(cdist(first, second) / (-_REACH * np.sqrt(2 * first.shape[1])))
    return similarity

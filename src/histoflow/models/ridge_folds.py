"""The strength of a ridge on inner folds: held-out R² at every strength, and no prediction is made for it.

With the training part of a fold turned so that its features are uncorrelated, of squared lengths λ, the ridge of
strength α has coefficients D s, where s are the products of features and targets and D = diag(1 / (λ + α)). Its error
on held-out spots, features F and targets t, summed over targets with weights w, is

    Σ w |t - F D s|² = Σ w |t|² - 2 Σₖ Dₖ (Σ w s (Fᵀt)ᵀ)ₖₖ + Σₖₗ Dₖ Dₗ (FᵀF)ₖₗ (Σ w s sᵀ)ₖₗ

so that two products summed over the targets serve every strength. The products s of a training part are those of all
spots less those of the spots left out, which with standardisation and centring differ from them by a matrix of rank
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs

from histoflow.models.inner import InnerFolds
from histoflow.models.linear import Doubles, Floats, LinearHead, RidgePath, chunks, is_constant
from histoflow.models.side_by_side import Run, side_by_side
from histoflow.models.smoothing import WEIGHTS, Smoother

ALPHAS = np.logspace(0, 6, 25)
"""Ridge strengths tried, for standardised features."""
DEFAULT_ALPHA = 1e3
"""Taken where no spots can be held out."""

_MANY_AXES = 256
"""Above so many, folds and pieces are computed beside each other."""

_Rows = NDArray[np.intp]


@dataclass(frozen=True)
class _Part:
    """Some targets in one fold.

    Attributes
    ----------
    fold
        The fold.
    which
        The targets.
    products
        Of turned, centred training features and centred targets, shape (n_axes, n_which).
    measured
        Held-out targets less their training mean, shape (n_held_out, n_which).
    mean
        Training mean of the targets that `RidgePath.targets` returns, shape (n_which,).
    weight
        1 / (n_held_out × held-out variance), float64, shape (n_which,); 0 for a target that is constant there.
    """

    fold: _Fold
    which: slice
    products: Floats
    measured: Floats
    mean: Floats
    weight: Doubles


class _Fold:
    """One inner fold of a `RidgePath`.

    Attributes
    ----------
    train, test, left_out
        Rows; `left_out` are those that are not in `train`.
    mean
        Of the turned training features, shape (n_axes,).
    without
        Turned features of `left_out`, shape (n_left_out, n_axes).
    """

    def __init__(self, path: RidgePath, train: _Rows, test: _Rows) -> None:
        self.train, self.test, self._path = train, test, path
        left_out = np.setdiff1d(np.arange(len(path.turned)), train)
        self.left_out = test if len(left_out) == len(test) else left_out
        self.without: Floats = path.turned[self.left_out]
        self.mean: Doubles = path.turned[train].mean(axis=0, dtype=np.float64)
        self._own: _OwnAxes | None = None

    @property
    def own(self) -> _OwnAxes:
        """Its own axes: most of a fold's work, which no product with targets has to wait for."""
        # Before Python 3.12 a `cached_property` has one lock for all folds, and they would wait for each other.
        if self._own is None:
            self._own = _OwnAxes(self, self._path)
        return self._own

    def centred_test(self) -> Floats:
        """Held-out features on the path's axes, less the training mean, shape (n_held_out, n_axes)."""
        return (self._path.turned[self.test] - self.mean).astype(self._path.dtype, copy=False)


class _OwnAxes:
    """A fold's training part standardised anew and turned onto its own principal axes.

    Attributes
    ----------
    values
        λ, shape (n_own_axes,), float64; infinite along an axis on which the training part does not lie.
    turn
        From the path's axes to the fold's own, shape (n_own_axes, n_axes).
    seen
        F: held-out features on the fold's own axes, shape (n_held_out, n_own_axes).
    """

    def __init__(self, fold: _Fold, path: RidgePath) -> None:
        mean, scale = path.moments(fold.train)
        # From the path's axes to features standardised on the training part: z A → z A @ spread.
        spread: Doubles = path.axes.T * (path.scale / scale)
        if path.gram is None:
            # The same distances in as few dimensions as there are axes.
            spread = np.asarray(np.linalg.cholesky(spread @ spread.T), dtype=np.float64)
            centred = path.turned[fold.train] - fold.mean
            gram: Doubles = spread.T @ (centred.T @ centred) @ spread
        else:
            ratio, shift = path.scale / scale, (mean - path.mean) / path.scale
            gram = path.gram - path.products(fold.left_out) - len(fold.train) * np.outer(shift, shift)
            gram *= np.outer(ratio, ratio)
        values, own = np.linalg.eigh(gram)
        self.values: Doubles = _without_empty(values, len(fold.train) - 1)
        self.turn: Floats = (own.T @ spread.T).astype(path.dtype, copy=False)
        self.seen: Floats = fold.centred_test() @ self.turn.T

    def shrunk(self, alpha: float | Doubles) -> Floats:
        """D, (n_own_axes, 1); or of one strength for each target, (n_own_axes, n_which)."""
        return (1 / (self.values[:, None] + alpha)).astype(self.seen.dtype, copy=False)


def _without_empty(values: Doubles, rank: int) -> Doubles:
    """Eigenvalues, ascending, infinite where the training part has no extent: a ridge has no coefficient there.

    What rounding leaves of one would be divided by the strength alone, and held-out spots do lie along these axes.
    """
    empty = values <= values[-1] * len(values) * np.finfo(np.float64).eps
    empty[: max(0, len(values) - rank)] = True
    return np.where(empty, np.inf, values)


class RidgeFolds:
    """The inner folds of a training set, for choosing what a ridge leaves open.

    Parameters
    ----------
    path
        The training set.
    folds
        ``(train, test)`` rows of it.
    run
        What runs calls on independent folds and targets: `map`, or what `side_by_side` gives.

    Attributes
    ----------
    along
        Products of the path's `turned` and `targets` over all rows, shape (n_axes, n_targets), once any score is known.
    """

    def __init__(self, path: RidgePath, folds: Sequence[tuple[_Rows, _Rows]], run: Run = map) -> None:
        self._path, self._run = path, run
        self._folds = [_Fold(path, *rows) for rows in folds]
        left_out = np.concatenate([fold.left_out for fold in self._folds])
        self.along: Floats = np.zeros((path.turned.shape[1], path.n_targets), path.dtype)
        self._once_each = len(left_out) == len(path.turned) == len(np.unique(left_out))

    def scores(self, alphas: Doubles) -> Doubles:
        """R² on held-out spots at each strength, averaged over targets, then over folds: (n_alphas,).

        A target that is constant in a held-out part counts 0 there.
        """
        sums = [_Sums(fold) for fold in self._folds]
        products = self._tasks(lambda part, number: sums[number].piece(part))
        # Own axes beside the products, so that no processor waits for the last fold.
        done = iter(self._run(lambda task: task(), [*self._axes_tasks(), *products]))
        for pieces in islice(done, len(sums), None):
            for total, piece in zip(sums, pieces, strict=True):
                total.add(piece)
        per_fold = list(self._run(lambda total: total.explained(alphas), sums))
        score: Doubles = np.mean(per_fold, axis=0) / self._path.n_targets
        return score

    def scores_by_target(self, alphas: Doubles) -> Doubles:
        """R² of each target on held-out spots at each strength, averaged over folds: (n_alphas, n_targets).

        As for `scores`, of which it is the part of each target; it takes as long as predicting at every strength.
        """

        def score(part: _Part, number: int) -> Doubles:
            own = part.fold.own
            along = own.turn @ part.products
            errors = (own.seen @ (along * own.shrunk(alpha)) - part.measured for alpha in alphas)
            squares = np.stack([np.einsum("sg,sg->g", error, error, dtype=np.float64) for error in errors])
            explained: Doubles = (part.weight > 0) - part.weight * squares
            return explained

        found: Doubles = np.concatenate([np.sum(pieces, axis=0) for pieces in self._each(score)], axis=1)
        return found / len(self._folds)

    def smoothing_scores(self, alpha: float | Doubles, smoother: Smoother, weights: Sequence[float]) -> Doubles:
        """R² on held-out spots at each weight of smoothing, averaged as by `scores`: (n_weights,).

        Parameters
        ----------
        alpha
            The strength, or one for each target, shape (n_targets,).
        smoother
            Of all rows; in a fold, of its held-out spots among themselves.
        weights
            Weights tried.
        """
        strengths = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (self._path.n_targets,))
        smoothers = [smoother.among(fold.test) for fold in self._folds]
        tried = np.asarray(weights)

        def score(part: _Part, number: int) -> Doubles:
            axes = part.fold.own
            along = (axes.turn @ part.products) * axes.shrunk(strengths[part.which])
            shift = (part.mean + self._path.intercept[part.which]).astype(along.dtype)
            own = np.maximum(axes.seen @ along + shift, 0)
            step = smoothers[number].mean(own) - own
            error = own - shift - part.measured
            squares, across, moved = (
                _weighted(part.weight, *pair) for pair in ((error, error), (error, step), (step, step))
            )
            explained: Doubles = (part.weight > 0).sum() - (squares + 2 * tried * across + tried**2 * moved)
            return explained

        total: Doubles = np.sum([np.sum(pieces, axis=0) for pieces in self._each(score)], axis=0)
        return total / len(self._folds) / self._path.n_targets

    def _each(self, score: Callable[[_Part, int], Any]) -> Iterable[list[Any]]:
        """What `score` makes of every fold, some targets at a time, these beside each other; in their order."""
        list(self._run(lambda task: task(), self._axes_tasks()))
        return self._run(lambda task: task(), self._tasks(score))

    def _axes_tasks(self) -> list[Callable[[], Any]]:
        """What finds the own axes of every fold, where they are not known."""
        return [lambda fold=fold: fold.own for fold in self._folds]  # type: ignore[misc]

    def _tasks(self, score: Callable[[_Part, int], Any]) -> list[Callable[[], list[Any]]]:
        """What scores every fold, a task for some targets."""

        def of_targets(which: slice) -> list[Any]:
            return [score(part, number) for number, part in enumerate(self._parts(which))]

        return [partial(of_targets, which) for which in chunks(self._path.n_targets, len(self._path.turned))]

    def _parts(self, which: slice) -> Iterator[_Part]:
        """Every fold's products with some targets."""
        turned, targets = self._path.turned, self._path.targets(which)
        without = [targets[fold.left_out] for fold in self._folds]
        products = [fold.without.T @ part for fold, part in zip(self._folds, without, strict=True)]
        total = sum(products[1:], products[0].copy()) if self._once_each else turned.T @ targets
        self.along[:, which] = total
        all_sum = targets.sum(axis=0, dtype=np.float64)
        for fold, part, missing in zip(self._folds, without, products, strict=True):
            mean = (all_sum - part.sum(axis=0, dtype=np.float64)) / len(fold.train)
            np.subtract(total, missing, out=missing)
            _subtract_outer(missing, len(fold.train) * fold.mean, mean)
            held_out = part if fold.test is fold.left_out else targets[fold.test]
            yield _Part(fold, which, missing, held_out - mean.astype(held_out.dtype), mean, inverse_squares(held_out))


class _Piece(NamedTuple):
    """What some targets give to `_Sums`."""

    square: Floats
    cross: Floats
    constant: float


class _Sums:
    """The two products of a fold summed over targets, which serve every strength."""

    def __init__(self, fold: _Fold) -> None:
        self._fold = fold
        n_held_out, n_axes = len(fold.test), len(fold.mean)
        self._centred_test = None if n_held_out < n_axes else fold.centred_test()
        self._square = np.zeros((n_axes, n_axes))
        self._cross = np.zeros((n_axes, min(n_held_out, n_axes)))
        self._constant = 0.0

    def piece(self, part: _Part) -> _Piece:
        """What some targets give; the part is used up by it."""
        root = np.sqrt(part.weight).astype(part.products.dtype)
        scaled, measured = part.products, part.measured
        scaled *= root
        measured *= root
        cross = scaled @ (measured.T if self._centred_test is None else measured.T @ self._centred_test)
        squares = np.einsum("sg,sg->", measured, measured, dtype=np.float64)
        # One buffer twice: half the work of a product.
        return _Piece(scaled @ scaled.T, cross, float((part.weight > 0).sum() - squares))

    def add(self, piece: _Piece) -> None:
        """Take up some targets, in double precision."""
        self._square += piece.square
        self._cross += piece.cross
        self._constant += piece.constant

    def explained(self, alphas: Doubles) -> Doubles:
        """Sum of R² over the targets at each strength, (n_alphas,)."""
        own = self._fold.own
        turn, seen = own.turn, own.seen
        frame = seen.T if self._centred_test is None else turn
        cross = ((turn @ self._cross.astype(turn.dtype)) * frame).sum(axis=1, dtype=np.float64)
        square = (turn @ self._square.astype(turn.dtype) @ turn.T) * (seen.T @ seen)
        shrunk = 1 / (own.values + alphas[:, None])
        found: Doubles = self._constant + 2 * shrunk @ cross - ((shrunk @ square) * shrunk).sum(axis=1)
        return found


def _subtract_outer(products: Floats, one: Doubles, other: Doubles) -> None:
    """Subtract one · otherᵀ in place, in the precision of `products`, with no second array of their size."""
    rank_one: Any = get_blas_funcs("ger", dtype=products.dtype)
    rank_one(-1.0, other, one, a=products.T, overwrite_a=True)


def inverse_squares(held_out: Floats) -> Doubles:
    """1 / (n_spots × variance) of each column, float64; 0 where it is constant."""
    mean = held_out.mean(axis=0, dtype=np.float64)
    centred = held_out - mean.astype(held_out.dtype)
    squares = np.einsum("sg,sg->g", centred, centred, dtype=np.float64)
    constant = is_constant(mean, np.sqrt(squares / len(held_out)))
    return np.where(constant, 0.0, 1 / np.where(constant, 1.0, squares))


def _weighted(weight: Doubles, first: Floats, second: Floats) -> float:
    """Products of two columns each, summed with the weights of the columns."""
    return float(weight @ np.einsum("sg,sg->g", first, second, dtype=np.float64))


def fit_grouped_ridge(
    x: Floats,
    y: Floats,
    inner: InnerFolds,
    *,
    alphas: Sequence[float] | Doubles = ALPHAS,
    per_target: bool = False,
    smoother: Smoother | None = None,
    standardise: bool = True,
) -> tuple[LinearHead, dict[str, Any]]:
    """Ridge with intercept on standardised features, its strength chosen on the inner folds.

    The strength with the best R² on held-out spots, averaged over targets and folds, as scikit-learn's
    ``GridSearchCV`` of a standardising ridge scores it; a target that is constant in a held-out part counts 0 there.

    Parameters
    ----------
    x
        Features, shape (n_spots, n_features).
    y
        Targets, shape (n_spots, n_targets).
    inner
        From `inner_folds`, for these rows.
    alphas
        Strengths tried.
    per_target
        Whether every target has a strength of its own, the best for it alone.
    smoother
        Of these rows; None for no smoothing.
    standardise
        As in `RidgePath`.

    Returns
    -------
    The head fitted on all rows; and alpha (with `per_target` also alpha_by_target), the score by alpha, the folds in
    words, and with a `smoother` smooth_weight and the score by weight.
    """
    with side_by_side(worth_it=min(x.shape) > _MANY_AXES) as run:
        path = RidgePath(x, y, standardise=standardise, run=run)
        report: dict[str, Any] = {"inner_folds": inner.how, "alpha": DEFAULT_ALPHA}
        if smoother is not None:
            report["smooth_weight"] = 0.0
        if not inner.folds:
            return path.head(report["alpha"]), report
        folds, tried = RidgeFolds(path, inner.folds, run), np.asarray(alphas, dtype=np.float64)
        chosen, more = _chosen(folds, tried, per_target)
        report |= more
        if smoother is not None:
            scores = folds.smoothing_scores(chosen, smoother, WEIGHTS)
            report |= {"smooth_weight": WEIGHTS[int(np.argmax(scores))], "smooth_weights": list(WEIGHTS)}
            report["smooth_inner_r2"] = scores.tolist()
        return path.head(chosen, folds.along), report


def _chosen(folds: RidgeFolds, tried: Doubles, per_target: bool) -> tuple[float | Doubles, dict[str, Any]]:
    """The best strength, or that of each target; and what is told of it."""
    by_target = folds.scores_by_target(tried) if per_target else None
    scores = folds.scores(tried) if by_target is None else by_target.mean(axis=1)
    alpha = float(tried[np.argmax(scores)])
    told = {"alpha": alpha, "alphas": tried.tolist(), "inner_r2": scores.tolist()}
    if by_target is None:
        return alpha, told
    # A target that is constant in every held-out part takes the strength of all.
    own = np.where(by_target.any(axis=0), tried[np.argmax(by_target, axis=0)], alpha)
    return own, told | {"alpha_by_target": own.tolist()}

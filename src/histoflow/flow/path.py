"""Probability paths: how a sample moves from the prior (t=0) to the data (t=1)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from histoflow._errors import ShapeError


class PathSample(NamedTuple):
    """A point on a path and the velocity there, both of shape (n_spots, n_genes)."""

    x_t: Tensor
    velocity: Tensor


class LinearPath:
    """Straight line from prior to data, ``x_t = (1 - t) x0 + t x1``."""

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor) -> PathSample:
        """Take the point at time `t` on the line.

        Parameters
        ----------
        x0
            Prior expression, shape (n_spots, n_genes).
        x1
            Observed expression, shape (n_spots, n_genes), same scale as `x0`.
        t
            Time in [0, 1], shape () for one section or (n_spots, 1) for several stacked.

        Returns
        -------
        Point and velocity, each of shape (n_spots, n_genes).

        Raises
        ------
        ShapeError
            If `x0` and `x1` differ in shape, or `t` fits neither form.
        """
        if x0.shape != x1.shape:
            raise ShapeError(
                f"x0 has shape {tuple(x0.shape)} but x1 has {tuple(x1.shape)}; draw the prior in the shape of the data"
            )
        check_time(t, len(x1))
        return PathSample(x_t=(1 - t) * x0 + t * x1, velocity=x1 - x0)


def check_time(t: Tensor, n_spots: int) -> None:
    """Raise `ShapeError` unless `t` has shape () or (n_spots, 1)."""
    if t.shape not in {(), (n_spots, 1)}:
        raise ShapeError(
            f"t must have shape () or ({n_spots}, 1), got {tuple(t.shape)}; "
            "give one time, or the time of its section to every spot"
        )

"""Where a spot's neighbours lie, told without regard to how the section is turned, mirrored or shifted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from histoflow._errors import ShapeError

_ISOTROPIC = 0.02
"""Relative gap of the eigenvalues below which a neighbourhood has no axes of its own."""


class EdgeGeometry(NamedTuple):
    """Place of every neighbour in its spot's own frame; masked places hold zeros.

    `projection` has shape (n_spots, K, 2): along the minor, then the major axis of the neighbourhood, from the
    neighbours' mean, signs arbitrary. `distance` has shape (n_spots, K): from the spot. Both in spot pitches.
    """

    projection: Tensor
    distance: Tensor

    def frames(self) -> Tensor:
        """Projection under the four choices of axis signs, with the distance: shape (n_spots, K, 4, 3).

        The mean of any function over the third axis is invariant (Puny et al. 2022, frame averaging).
        """
        signs = self.projection.new_tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        flipped = self.projection[..., None, :] * signs
        return torch.cat([flipped, self.distance[..., None, None].expand(*flipped.shape[:-1], 1)], dim=-1)


def edge_geometry(xy: Tensor, index: Tensor, mask: Tensor, *, dtype: torch.dtype = torch.float32) -> EdgeGeometry:
    """Describe each neighbourhood in the axes of its own 2 x 2 scatter (arXiv 2506.05361, section on frame averaging).

    Parameters
    ----------
    xy
        x, y of the spots in spot pitches, any origin and orientation, shape (n_spots, 2). Give float64: the shift of
        a section far from the origin is exact only as far as the coordinates are.
    index
        Neighbours of each spot, shape (n_spots, K), int64.
    mask
        Which neighbours are real, shape (n_spots, K), bool.
    dtype
        Type of the result; everything before it is computed in float64.

    Returns
    -------
    Projections (n_spots, K, 2) and distances (n_spots, K).

    Raises
    ------
    ShapeError
        If the shapes do not belong together.
    """
    _check_shapes(xy, index, mask)
    xy, real = xy.to(torch.float64), mask.to(torch.float64)[..., None]
    offset = (xy[index] - xy[:, None]) * real
    mean = offset.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    projection = _project((offset - mean) * real)
    return EdgeGeometry(projection.to(dtype), torch.linalg.vector_norm(offset, dim=-1).to(dtype))


def _project(centred: Tensor) -> Tensor:
    """Turn offsets (n_spots, K, 2) from x, y into the minor and major axis of their scatter."""
    x, y = centred.unbind(dim=-1)
    difference, twice_xy = (x * x - y * y).sum(dim=1, keepdim=True), 2 * (x * y).sum(dim=1, keepdim=True)
    angle = torch.atan2(twice_xy, difference) / 2  # of the major axis of a symmetric 2 x 2 matrix
    along = torch.stack([y * angle.cos() - x * angle.sin(), x * angle.cos() + y * angle.sin()], dim=-1)
    # Complete rings of a lattice, rounded or not, have no axes: any would be noise. Averaged over O(2) instead, an
    # offset is a circle; these coordinates, under the same four sign flips, are the 4-point quadrature on it.
    radius = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    circle = (radius / 2**0.5).expand_as(centred)
    isotropic = torch.hypot(difference, twice_xy) <= _ISOTROPIC * radius.square().sum(dim=1)
    return torch.where(isotropic[..., None], circle, along)


def _check_shapes(xy: Tensor, index: Tensor, mask: Tensor) -> None:
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ShapeError(f"xy has shape {tuple(xy.shape)}; give x and y of every spot, (n_spots, 2)")
    if index.ndim != 2 or index.shape != mask.shape or len(index) != len(xy):
        raise ShapeError(
            f"index has shape {tuple(index.shape)} and mask {tuple(mask.shape)}; "
            f"both must be ({len(xy)}, K), as histoflow.pp.neighbors makes them for these spots"
        )

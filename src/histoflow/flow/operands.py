"""What the compiled loops of `kernels` take. An array of rows may hold the bits of numbers in bfloat16, as uint16.

The order of the fields is part of the compiled code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]


class Chosen(NamedTuple):
    """What dropout chooses, see `histoflow.flow.dropout.Choice`: `factor` and `offset` of its stream, and `least`."""

    factor: int
    offset: int
    least: int


class Spots(NamedTuple):
    """What enters attention of n spots with K neighbours each, of M spots in all, in H heads of width W.

    Attributes
    ----------
    receiver, sender
        Shares of spots in the first layer, shapes (n, H, 2, W / 2) and (M, H, 2, W / 2).
    value, edge
        What is averaged, shapes (M, H, …) and (n, K, H, …).
    near, mask
        Neighbours, and which are real, shape (n, K).
    """

    receiver: Array
    sender: Array
    value: Array
    edge: Array
    near: Array
    mask: Array


class ReadOut(NamedTuple):
    """Last layer of the attention network, and dropout inside and behind it.

    Attributes
    ----------
    weight, bias
        Shapes (W / 2,) and (1,).
    constants
        Epsilon of the norm, and what logits and weights that are kept are multiplied with, shape (3,).
    inside, logits, weights
        What is kept of gated rows, of logits and of weights of neighbours.
    """

    weight: Array
    bias: Array
    constants: Array
    inside: Chosen | None
    logits: Chosen | None
    weights: Chosen | None


class Edges(NamedTuple):
    """Geometry of edges and the first layer that embeds it.

    Attributes
    ----------
    projection, distance
        As in `EdgeGeometry`, shapes (n_edges, 2) and (n_edges,).
    weight
        Of the two places, of the distance, and the bias, shape (4, 2, width / 2).
    inside
        What is kept of gated rows.
    constants
        Epsilon of the norm, shape (1,).
    """

    projection: Array
    distance: Array
    weight: Array
    inside: Chosen | None
    constants: Array


class Gradient(NamedTuple):
    """Where the way back through attention writes: sums for `sender`, `value` and `last`, the others set.

    Attributes
    ----------
    receiver, sender, value, edge
        As in `Spots`.
    last
        Weights of the last layer, then its bias, for every head, shape (H, W / 2 + 1).
    first
        Spot with which `sender` and `value` begin.
    """

    receiver: Array
    sender: Array
    value: Array
    edge: Array
    last: Array
    first: int

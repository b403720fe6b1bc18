"""Recipes of the flow: the published one, and the one that did better on held-out parts of training sections."""

from __future__ import annotations

from dataclasses import dataclass

from histoflow._errors import OptionError
from histoflow.models.member import Network
from histoflow.models.training import Training


@dataclass(frozen=True)
class FlowRecipe:
    """What a flow is made of, beside its seed and what it looks through.

    Attributes
    ----------
    network, training
        Sizes, and steps, unless they are given.
    n_factors
        Patterns shared by the genes that are learned, see `anchor.low_rank`; None for the measured expression itself.
    anchored
        Whether the prediction is a mean of the flow and of a closed form, see `anchor.Anchor`, and draws depart from it
        as held-out spots did, see `departure.Departure`.
    """

    network: Network
    training: Training
    n_factors: int | None
    anchored: bool


RECIPES = {
    "default": FlowRecipe(
        Network(pairwise_dim=32), Training(learning_rate=1e-3, n_members=4), n_factors=6, anchored=True
    ),
    "paper": FlowRecipe(Network(), Training(n_members=1), n_factors=None, anchored=False),
}


def recipe_from_name(name: str) -> FlowRecipe:
    """Find the recipe called `name`.

    Raises
    ------
    OptionError
        If there is none of that name.
    """
    if name not in RECIPES:
        raise OptionError(f"recipe is {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]

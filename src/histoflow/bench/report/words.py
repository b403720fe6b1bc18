"""What the page calls a figure, and what the figure means, in plain words."""

from __future__ import annotations

METRICS = {
    "pearson": ("r", "Pearson correlation of predicted with measured expression over the spots of a held-out section"),
    "spearman": ("Spearman", "the same correlation, of ranks"),
    "partial_pearson": ("partial r", "r given the total counts: what is left once rich and poor spots are told apart"),
    "mse_skill": (
        "skill",
        "share of the squared error taken away, against predicting every gene's training mean; 0 is no better than "
        "the mean, 1 is perfect, below 0 is worse than the mean",
    ),
    "variance_ratio": (
        "variance ratio",
        "variance of the predicted over that of the measured expression; below 1 the maps are flatter than the tissue",
    ),
    "share_of_ceiling": (
        "share of ceiling",
        "r as a share of the greatest r that the sampling noise of the counts allows, itself an upper bound",
    ),
    "coverage_50": ("coverage 50", "share of measured values inside the 50 % interval; should be 50 %"),
    "coverage_80": ("coverage 80", "share of measured values inside the 80 % interval; should be 80 %"),
    "coverage_90": ("coverage 90", "share of measured values inside the 90 % interval; should be 90 %"),
    "width_90": ("width 90", "mean width of the 90 % interval, on the scale of the expression"),
    "crps": ("CRPS", "continuous ranked probability score of the predicted distribution; smaller is better"),
}
"""Label and meaning by name in the table, in the order of the page's columns."""

IN_MODEL_TABLE = (
    *("spearman", "partial_pearson", "mse_skill", "variance_ratio"),
    *("share_of_ceiling", "coverage_90", "crps"),
)
IN_GENE_TABLE = (
    *("pearson", "share_of_ceiling", "coverage_80", "coverage_90", "width_90"),
    *("mse_skill", "variance_ratio", "partial_pearson"),
)
OTHER = {
    "log1p": "the natural logarithm of 1 + x; a difference of 0.69 is a factor of two where counts are large",
    "held out": "not seen in training: the model was fitted on the other parts of the cohort",
    "baseline": "a trivial model, which says what a score is worth: the mean; total counts; the colour of the stain",
    "oracle": "a baseline that was told the true total counts, which no image shows; never a model to use",
    "panel": "the list of genes, chosen from the training sections alone; figures compare only on equal lists",
    "interval": "the range in which the measured value should lie, as often as its level says",
    "spread": "standard deviation of the model's draws; it is not an interval and says nothing of the counts' noise",
}


def listed(names: list[str] | tuple[str, ...], most: int = 12, between: str = ", ") -> str:
    """Some names as a phrase, the rest as a number."""
    if len(names) > most:
        return f"{between.join(names[:most])} and {len(names) - most} more"
    return between.join(names)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people, with a minus sign rather than a hyphen; a dash where it is not defined."""
    if value is None or value != value:
        return "–"
    text = f"{value:.{digits}f}".replace("-", "−")
    return text.removeprefix("−") if not float(f"{value:.{digits}f}") else text


def percent(value: float) -> str:
    """A share as whole per cent."""
    return f"{100 * value:.0f} %"

"""Counts to the model's scale, and the panel: which genes, in which order, chosen by which rule."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from histoflow._errors import GeneNamesWarning, MissingDependencyError, OptionError, PanelMismatchError
from histoflow._files import value_hash
from histoflow._keys import SPATIAL_UM, Missing, check_section, section_name
from histoflow.pp.graph import neighbors
from histoflow.stats.metrics import moran

Normalize = Literal["library", "none"]
"""``library``: counts per 10,000, then log1p. ``none``: log1p of the raw counts."""
PanelRule = Literal["variance", "hvg", "spatial"]

TARGET_SUM = 10_000.0
MIN_DETECTED = 0.10
N_MORAN_NEIGHBORS = 6
_BLOCK = 1 << 10
"""Spots brought to the model's scale at a time: a whole transcriptome is not held twice."""
_TIE_DECIMALS = 10  # sums over spots differ in the last bits with the order of the spots; ties must not
_EXCLUDED = re.compile(
    r"^(MT-|RP[SL]\d|RP[SL][PA]\d?|ERCC-|BLANK|NEGCONTROL|UNASSIGNED|ANTISENSE|DEPRECATED|INTERGENIC)|CONTROL", re.I
)


@dataclass(frozen=True)
class Panel:
    """Genes that a model predicts, in the order of its columns.

    Parameters
    ----------
    genes
        Gene names as in ``var_names``, each once.
    rule
        How they were chosen: ``variance``, ``hvg``, ``spatial``, ``given``, or ``all`` that a pretrained model knows.
    """

    genes: tuple[str, ...]
    rule: str = "given"

    def __post_init__(self) -> None:
        """Refuse an empty panel and repeated genes."""
        repeated = sorted(gene for gene, times in Counter(self.genes).items() if times > 1)
        if repeated or not self.genes:
            what = f"names {', '.join(repeated[:5])} more than once" if repeated else "is empty"
            raise PanelMismatchError(f"the panel {what}; give each wanted gene once")

    def __len__(self) -> int:
        """Count the genes."""
        return len(self.genes)

    @property
    def hash(self) -> str:
        """Hash of the ordered list, 12 hex digits: figures are compared only on equal lists."""
        return value_hash(list(self.genes))[:12]


def library_size(section: AnnData) -> np.ndarray:
    """Total counts of each spot over all genes measured, float64, shape (n_spots,)."""
    check_section(section, needs=["X"])
    return np.asarray(section.X.sum(axis=1), dtype=np.float64).ravel()


def keep_spots(section: AnnData, *, min_counts: int) -> AnnData:
    """Leave out spots with fewer than `min_counts` counts in all; the number is the difference in ``n_obs``."""
    return section[library_size(section) >= min_counts].copy() if min_counts > 0 else section


def check_normalize(normalize: str) -> Normalize:
    """Return `normalize` if it is offered, else raise OptionError."""
    if normalize not in get_args(Normalize):
        raise OptionError(f"normalize={normalize!r} is not offered; choose from {', '.join(get_args(Normalize))}")
    return cast(Normalize, normalize)


def check_missing(missing: str) -> Missing:
    """Return `missing` if it is offered, else raise OptionError."""
    if missing not in get_args(Missing):
        raise OptionError(f"missing={missing!r} is not offered; choose from {', '.join(get_args(Missing))}")
    return cast(Missing, missing)


def missing_genes(section: AnnData, panel: Panel) -> list[str]:
    """Genes of the panel that the section's table lacks, in the order of the panel."""
    return [gene for gene in panel.genes if gene not in section.var_names]


def panel_counts(section: AnnData, panel: Panel, *, missing: Missing = "error") -> np.ndarray:
    """Raw counts of the panel's genes.

    Parameters
    ----------
    section
        X raw counts.
    panel
        Genes, in the order of the result.
    missing
        What a gene is that the section's table lacks: ``"error"``, for it was not measured, which is not zero; or
        ``"zero"``, for tables of one chemistry that were trimmed of genes without counts.

    Returns
    -------
    Counts, float64, shape (n_spots, n_genes).

    Raises
    ------
    PanelMismatchError
        If the section's table lacks a gene of the panel, or for ``"zero"`` all of them.
    OptionError
        If `missing` is not offered.

    Warns
    -----
    GeneNamesWarning
        If genes were taken for zero: how many, and which.
    """
    return _taken(section.X, _place(section, panel, missing))


def _place(section: AnnData, panel: Panel, missing: Missing) -> np.ndarray:
    """Column of each gene of the panel, -1 for one that is taken for zero."""
    check_missing(missing)
    if lacking := missing_genes(section, panel):
        _tell_missing(section_name(section), lacking, panel, missing)
    return cast(np.ndarray, section.var_names.get_indexer(pd.Index(panel.genes)))


def _taken(matrix: Any, place: np.ndarray) -> np.ndarray:
    """Columns of counts, float64; zero where `place` is -1."""
    counts = np.zeros((matrix.shape[0], len(place)))
    counts[:, place >= 0] = _dense(matrix[:, place[place >= 0]])
    return counts


def _tell_missing(name: str, lacking: list[str], panel: Panel, missing: Missing) -> None:
    named = ", ".join(lacking[:5]) + (" …" if len(lacking) > 5 else "")
    text = f"section {name} lacks {len(lacking)} of the panel's {len(panel)} genes ({named})"
    if missing == "error":
        raise PanelMismatchError(
            f"{text}; choose the panel from genes measured in every section, or state missing='zero' if the tables "
            "are of one chemistry and were trimmed of genes without counts"
        )
    if len(lacking) == len(panel):
        raise PanelMismatchError(f"{text}: none is left to take for measured; check how the genes are named")
    warnings.warn(f"{text}; they are taken for zero", GeneNamesWarning, stacklevel=4)


def panel_log1p(section: AnnData, panel: Panel, normalize: Normalize, *, missing: Missing = "error") -> np.ndarray:
    """Measured expression on the model's scale.

    Parameters
    ----------
    section
        X raw counts.
    panel
        Genes, in the order of the result.
    normalize
        ``"library"`` or ``"none"``.
    missing
        A gene that the section's table lacks, as in `panel_counts`.

    Returns
    -------
    log1p expression, float32, shape (n_spots, n_genes): of counts per 10,000 of all genes of the section's table
    for ``library``, of raw counts for ``none``. A spot without counts is 0.

    Raises
    ------
    PanelMismatchError
        If the section's table lacks a gene of the panel, or for ``missing="zero"`` all of them.
    OptionError
        If `missing` is not offered.

    Warns
    -----
    GeneNamesWarning
        If genes were taken for zero: how many, and which.
    """
    place, totals = _place(section, panel, missing), library_size(section)
    log1p = np.empty((section.n_obs, len(panel)), dtype=np.float32)
    for start in range(0, section.n_obs, _BLOCK):
        rows = slice(start, start + _BLOCK)
        log1p[rows] = to_log1p(_taken(section.X[rows], place), totals[rows], normalize)
    return log1p


def to_log1p(counts: np.ndarray, totals: np.ndarray, normalize: Normalize) -> np.ndarray:
    """Counts (n_spots, n_genes) with library sizes (n_spots,) to log1p expression, float32, same shape."""
    scale = TARGET_SUM / np.maximum(totals, 1.0) if normalize == "library" else np.ones_like(totals)
    return cast(np.ndarray, np.log1p(counts * scale[:, None]).astype(np.float32))


def choose_panel(
    sections: Sequence[AnnData],
    n_genes: int = 50,
    rule: PanelRule = "variance",
    *,
    normalize: Normalize = "library",
    keep: Sequence[str] = (),
) -> Panel:
    """Choose the genes worth predicting, from the sections given and no others.

    Candidates are genes present in all sections and detected in at least 10 % of the spots of each; mitochondrial,
    ribosomal and control features are out. Ties go by name.

    Parameters
    ----------
    sections
        Training sections, raw counts.
    n_genes
        Size of the panel.
    rule
        ``variance``: variance of the expression on the model's scale over all spots pooled. ``hvg``: the
        HEST-Benchmark's, scanpy's ``seurat`` flavour on log1p of raw counts. ``spatial``: Moran's I on the model's
        scale, mean over sections.
    normalize
        The model's scale.
    keep
        Genes that stay candidates although their name marks them as mitochondrial, ribosomal or control.

    Raises
    ------
    OptionError
        If the rule or the scale is not offered, or `n_genes` is below 1.
    PanelMismatchError
        If no section is given, or fewer than `n_genes` candidates are left.
    """
    if rule not in get_args(PanelRule):
        raise OptionError(f"rule={rule!r} is not offered; choose from {', '.join(get_args(PanelRule))}")
    if n_genes < 1:
        raise OptionError(f"n_genes is {n_genes}; ask for at least 1 gene")
    scale = check_normalize(normalize)
    candidates = _candidates(sections, set(keep))
    if len(candidates) < n_genes:
        raise PanelMismatchError(
            f"{n_genes} genes were asked for, but only {len(candidates)} are measured in all {len(sections)} sections "
            f"and detected in {MIN_DETECTED:.0%} of the spots of each; ask for fewer, or name the genes"
        )
    if rule == "hvg":
        return Panel(_scanpy_hvg(sections, candidates, n_genes), rule)
    pool = Panel(tuple(candidates))
    values = [panel_log1p(s, pool, scale) for s in sections]
    scores = _variance(values) if rule == "variance" else _mean_moran(sections, values)
    # Stable, on candidates that are sorted by name: ties go by name.
    best = np.argsort(-scores.round(_TIE_DECIMALS), kind="stable")[:n_genes]
    return Panel(tuple(candidates[i] for i in best), rule)


def _candidates(sections: Sequence[AnnData], keep: set[str]) -> list[str]:
    """Names of genes detected often enough in every section, sorted."""
    if not sections:
        raise PanelMismatchError("no section was given to choose a panel from; pass at least one")
    common: set[str] | None = None
    for section in sections:
        check_section(section, needs=["X"])
        detected = np.asarray((section.X > 0).sum(axis=0)).ravel()
        often = set(section.var_names[detected >= MIN_DETECTED * section.n_obs])
        common = often if common is None else common & often
    return sorted(g for g in common or () if g in keep or not _EXCLUDED.search(g))


def _variance(values: list[np.ndarray]) -> np.ndarray:
    pooled = np.concatenate(values).astype(np.float64)
    return cast(np.ndarray, pooled.var(axis=0))


def _mean_moran(sections: Sequence[AnnData], values: list[np.ndarray]) -> np.ndarray:
    scores = []
    for section, expression in zip(sections, values, strict=True):
        check_section(section, needs=[SPATIAL_UM])
        graph = neighbors(section.obsm[SPATIAL_UM], N_MORAN_NEIGHBORS)
        scores.append(np.nan_to_num(moran(expression, graph.index, graph.mask)))
    return cast(np.ndarray, np.mean(scores, axis=0))


def _scanpy_hvg(sections: Sequence[AnnData], candidates: list[str], n_genes: int) -> tuple[str, ...]:
    try:
        import scanpy as sc
    except ImportError as err:
        raise MissingDependencyError('rule="hvg" needs scanpy: pip install "histoflow[hvg]"') from err
    pool = Panel(tuple(candidates))
    stacked = AnnData(np.log1p(np.concatenate([panel_counts(s, pool) for s in sections])).astype(np.float32))
    stacked.var_names = candidates
    found = sc.pp.highly_variable_genes(stacked, n_top_genes=n_genes, flavor="seurat", inplace=False)
    ranked = found["dispersions_norm"].to_numpy()
    order = np.argsort(-np.nan_to_num(ranked, nan=-np.inf), kind="stable")[:n_genes]
    return tuple(candidates[i] for i in order)


def _dense(matrix: Any) -> np.ndarray:
    dense = matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
    return np.asarray(dense, dtype=np.float64)

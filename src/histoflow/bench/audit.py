"""The auditor: what the two sides of every fold of a cohort share, from ids, slides, pixels and counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from histoflow._keys import DENSE, EMBEDDINGS, PATIENT, SPATIAL_UM, facts, section_name
from histoflow.bench.folds import By, audit_fold_ids, facts_of, level_of, unchecked_folds, widest_patch_um
from histoflow.stats.audit import COUNTS, Contents, Finding, audit_contents
from histoflow.stats.splits import Fold

_LEAST_COUNTS = 10


def audit(cohort: Sequence[AnnData], by: By | str = "section") -> list[Finding]:
    """Find what the two sides of every fold share, without refusing anything.

    Parameters
    ----------
    cohort
        Sections with counts and, where they are embedded, with embeddings.
    by
        As in `run`, which refuses what violates it.

    Returns
    -------
    Two spellings of one id, serial neighbours, one slide under two names, patches that overlap, equal rows of
    embeddings or counts, and patient columns that contradict; each with the sections, a sentence, and whether it
    violates the asked level.

    Raises
    ------
    OptionError, SplitError
        As `plan_folds`, where the cohort cannot be split so at all.
    """
    folds = unchecked_folds(cohort, by)
    ids = [finding for fold in folds for finding in audit_fold_ids(fold, cohort, by)]
    return [*ids, *audit_sections(folds, cohort, by)]


def audit_sections(folds: Sequence[Fold], sections: Sequence[AnnData], by: By | str) -> list[Finding]:
    """Find pixels, counts and patients that are on both sides of a fold, from what is in the sections."""
    genes = sorted(set.intersection(*(set(section.var_names) for section in sections)))
    contents = [contents_of(section, genes) for section in sections]
    level, found = level_of(by), []
    for fold in folds:
        train, test = _sides(fold, contents)
        held_out = [sections[place] for place in fold.test]
        found += [finding for section in held_out for finding in _patient_cells(fold.name, level, section)]
        found += audit_contents(fold.name, level, train, test)
    return found


def contents_of(section: AnnData, genes: Sequence[str]) -> Contents:
    """What is in a section, for comparison; counts of these genes."""
    rows = embedding_rows(section) | ({COUNTS: count_rows(section, genes)} if genes else {})
    slide_id = str(facts(section).get("slide_id", ""))
    xy_um = np.asarray(section.obsm[SPATIAL_UM], dtype=float)
    return Contents(facts_of(section), slide_id, xy_um, widest_patch_um(section), rows)


def _sides(fold: Fold, contents: Sequence[Contents]) -> tuple[list[Contents], list[Contents]]:
    """Both sides of a fold; of a section that is on both, the rows of each."""
    if fold.rows is None:
        return [contents[place] for place in fold.train], [contents[place] for place in fold.test]
    (place,) = fold.test
    own = [_part(contents[place], list(rows)) for rows in fold.rows]
    return [own[0] if other == place else contents[other] for other in fold.train], [own[1]]


def _part(contents: Contents, rows: list[int]) -> Contents:
    hashes = {what: values[rows] for what, values in contents.rows.items()}
    return replace(contents, xy_um=contents.xy_um[rows], rows=hashes)


def _patient_cells(fold: str, by: str, section: AnnData) -> list[Finding]:
    """A column of patients that is empty somewhere, or says another patient than the section's own."""
    stated = facts_of(section).patient
    if PATIENT not in section.obs or stated is None:
        return []
    cells = section.obs[PATIENT].astype(object)
    named = cells.where(cells.notna(), "").astype(str).str.strip()
    others = sorted(set(named) - {stated})
    if not others:
        return []
    name, n_spots = section_name(section), int((named != stated).sum())
    text = (
        f"section {name} is said to be of patient {stated!r}, but {n_spots} of its cells in obs[{PATIENT!r}] hold "
        f"{', '.join(repr(other) for other in others)}: fill the column with its one patient"
    )
    return [Finding(fold, by, "patient_cells", (name, name), text, by == "patient")]


def embedding_rows(section: AnnData) -> dict[str, NDArray[np.uint64]]:
    """Hashes of the rows of each embedding of a section, by name; of super-pixels only where there is nothing else."""
    made = [name for name in facts(section).get(EMBEDDINGS, {}) if name in section.obsm]
    patches = [name for name in made if not name.endswith(DENSE)]
    return {f"embeddings {name}": _hashes(np.asarray(section.obsm[name])) for name in patches or made}


def count_rows(section: AnnData, genes: Sequence[str]) -> NDArray[np.uint64]:
    """Hashes of the rows of counts of these genes; rows of hardly any counts are all alike."""
    counts = section[:, list(genes)].X
    dense_rows = sparse.csr_matrix(counts)
    dense_rows.sort_indices()
    dense_rows.eliminate_zeros()
    totals = np.asarray(dense_rows.sum(axis=1)).ravel()
    starts = dense_rows.indptr
    values, columns = dense_rows.data.astype(np.float64), dense_rows.indices.astype(np.int64)
    rows = (
        columns[first:last].tobytes() + values[first:last].tobytes() if total >= _LEAST_COUNTS else b""
        for first, last, total in zip(starts[:-1], starts[1:], totals, strict=True)
    )
    return np.array([_hash(row) for row in rows], dtype=np.uint64)


def _hashes(rows: NDArray[Any]) -> NDArray[np.uint64]:
    return np.array([_hash(np.ascontiguousarray(row).tobytes()) for row in rows], dtype=np.uint64)


def _hash(row: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")

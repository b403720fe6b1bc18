"""Gene names: symbols and Ensembl ids, one for the other; and of which species they are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import pandas as pd
from anndata import AnnData

from histoflow._errors import GeneNamesWarning, MissingSlotError, OptionError, PanelMismatchError
from histoflow._keys import section_name
from histoflow.io.arrays import unique_names

Naming = Literal["symbol", "ensembl"]
Species = Literal["human", "mouse", "unknown"]

IDS, SYMBOLS = "gene_ids", "gene_symbols"
"""Columns of ``var``, as 10x readers write them: Ensembl ids beside symbols, or symbols beside Ensembl ids."""

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d+)(?:\.\d+)?(_PAR_Y)?")
_COLUMN: dict[Naming, str] = {"symbol": SYMBOLS, "ensembl": IDS}
_ID_OF: dict[Species, re.Pattern[str]] = {"human": re.compile(r"ENSG\d"), "mouse": re.compile(r"ENSMUSG\d")}
_MOST = 0.8
_N_NAMED = 5


def rename_genes(section: AnnData, to: Naming) -> AnnData:
    """Name the genes of a section by symbol or by Ensembl id, from the other names that its table holds.

    Ids lose their version: ``ENSG00000141510.5`` becomes ``ENSG00000141510``. A gene whose other name is not in the
    table keeps the one it has. Names that two genes share are made unique, the second ``A`` becoming ``A-1``.

    Parameters
    ----------
    section
        A section, with the Ensembl ids of its symbols in ``var["gene_ids"]``, or the symbols of its Ensembl ids in
        ``var["gene_symbols"]``. It is not changed.
    to
        ``"symbol"`` or ``"ensembl"``.

    Returns
    -------
    A new section, the same but for ``var_names``; ``var["gene_ids"]`` or ``var["gene_symbols"]`` keeps the names it
    had, so that it can be renamed back.

    Raises
    ------
    OptionError
        If `to` is neither.
    MissingSlotError
        If no name is of the kind asked for and ``var`` has no column of that kind.

    Warns
    -----
    GeneNamesWarning
        If genes kept the name they had, how many; if names were repeated, how many.

    Examples
    --------
    >>> section = rename_genes(section, to="symbol")  # doctest: +SKIP
    """
    if to not in get_args(Naming):
        raise OptionError(f"to is {to!r}; choose one of {', '.join(get_args(Naming))}")
    before: Naming = "ensembl" if to == "symbol" else "symbol"
    own = [_without_version(name) for name in section.var_names.astype(str)]
    wanted = _names(section, own, to)
    kept = [name for name, found in zip(own, wanted, strict=True) if not found]
    if kept:
        text = f"section {section_name(section)}: {len(kept)} of {len(own)} genes have no {to} name and keep theirs"
        warnings.warn(f"{text} ({_some(kept)})", GeneNamesWarning, stacklevel=2)
    renamed = section.copy()
    beside = _column(section, before)
    renamed.var[_COLUMN[before]] = [n if _fits(n, before) else b for n, b in zip(own, beside, strict=True)]
    names = [found or name for found, name in zip(wanted, own, strict=True)]
    renamed.var_names = pd.Index(unique_names(names, f"section {section_name(section)}"), dtype=object)
    return renamed


def _without_version(name: str) -> str:
    found = _ENSEMBL.fullmatch(name)
    return name if found is None else found[1] + (found[2] or "")


def _fits(name: str, kind: Naming) -> bool:
    return bool(name) and (_ENSEMBL.fullmatch(name) is not None) == (kind == "ensembl")


def _column(section: AnnData, kind: Naming) -> list[str]:
    """What the table's column of this kind says of every gene; empty where it says nothing."""
    if _COLUMN[kind] not in section.var:
        return [""] * section.n_vars
    return [_without_version(name) for name in section.var[_COLUMN[kind]].astype(object).fillna("").astype(str)]


def _names(section: AnnData, own: Sequence[str], kind: Naming) -> list[str]:
    """The name of this kind of every gene, from its own names or else the column; empty where neither is of it."""
    if _COLUMN[kind] not in section.var and not any(_fits(name, kind) for name in own):
        raise MissingSlotError(
            f'section {section_name(section)} has no var["{_COLUMN[kind]}"], from which its genes could be named by '
            f"{kind}; write their {kind} names there"
        )
    pairs = zip(own, _column(section, kind), strict=True)
    return [next((name for name in pair if _fits(name, kind)), "") for pair in pairs]


def species_of(names: Iterable[str]) -> Species:
    """Tell a species from gene names.

    Ensembl ids tell it by their prefix, ``ENSG`` or ``ENSMUSG``; symbols by their case, as human symbols are upper-case
    (``CD3E``) and mouse symbols title-case (``Cd3e``). A symbol of fewer than two letters tells nothing. Other rodents
    have symbols like those of the mouse.

    Parameters
    ----------
    names
        Symbols, Ensembl ids or both.

    Returns
    -------
    ``"human"`` or ``"mouse"`` where at least 80 % of the names that can tell agree, else ``"unknown"``.
    """
    told = [species for name in names if (species := _told_by(str(name))) is not None]
    for species in _ID_OF:
        if told and told.count(species) >= _MOST * len(told):
            return species
    return "unknown"


def _told_by(name: str) -> Species | None:
    """What one name tells: a species, ``unknown`` where it is neither's, or None where it can tell nothing."""
    if _ENSEMBL.fullmatch(name):
        return next((species for species, prefix in _ID_OF.items() if prefix.match(name)), "unknown")
    letters = "".join(character for character in name if character.isalpha())
    if len(letters) < 2:
        return None
    if letters.isupper():
        return "human"
    return "mouse" if letters.istitle() else "unknown"


def check_species(sections: Iterable[AnnData], genes: Iterable[str] = ()) -> Species:
    """Refuse to put genes of one species on sections of another.

    Parameters
    ----------
    sections
        Sections to be used together; their species is told by ``var_names``, or else by ``var["gene_ids"]``.
    genes
        Genes of a panel or of a model that is to be used on them.

    Returns
    -------
    The one species, ``"unknown"`` where no name tells it. What is unknown is not refused.

    Raises
    ------
    PanelMismatchError
        If human and mouse genes meet: what came is named.

    Examples
    --------
    >>> check_species(cohort, panel.genes)  # doctest: +SKIP
    'human'
    """
    wanted = list(genes)
    came = [(f"the list of {len(wanted)} asked for", species_of(wanted), wanted)] if wanted else []
    for section in sections:
        came.append((f"section {section_name(section)}", _species_of_section(section), list(section.var_names)))
    known: dict[Species, tuple[str, list[str]]] = {}
    for who, species, names in came:
        if species != "unknown":
            known.setdefault(species, (who, names))
    if len(known) > 1:
        told = [f"{species} genes in {who} ({_some(names)})" for species, (who, names) in known.items()]
        raise PanelMismatchError(f"two species meet: {'; '.join(told)}; fit, choose and predict each species by itself")
    return next(iter(known), "unknown")


def _species_of_section(section: AnnData) -> Species:
    species = species_of(section.var_names)
    return species_of(section.var[IDS].dropna()) if species == "unknown" and IDS in section.var else species


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_N_NAMED]) + (" …" if len(names) > _N_NAMED else "")

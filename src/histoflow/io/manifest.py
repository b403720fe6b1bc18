"""Cohorts: a manifest of sections, checked as a whole, and the sequence of sections that it names."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args, overload

from anndata import AnnData

from histoflow._errors import ManifestError, MissingSlotError, OptionError, ReadError
from histoflow._keys import UNS, Missing, facts
from histoflow.io.features import features_section
from histoflow.io.hdf5 import read_anndata
from histoflow.io.images import existing_file
from histoflow.io.section import Given
from histoflow.io.spaceranger import visium_section
from histoflow.io.spots import anndata_section, st_section
from histoflow.io.visium_hd import visium_hd_section

REFERENCE, HELD_OUT, QUERY = "reference", "held_out", "query"
ROLES = (REFERENCE, HELD_OUT, QUERY)
SLIDE_KIND, FEATURES_KIND = "slide", "features"
_NEEDED = {
    "visium": ("counts",),
    "visium_hd": ("counts",),
    "st": ("counts", "spots", "slide"),
    "h5ad": ("counts",),
    SLIDE_KIND: ("slide",),
    FEATURES_KIND: ("slide",),
}
_PATHS = ("counts", "spots", "slide")


@dataclass(frozen=True)
class Row:
    """One row of a manifest: a section, or a slide to predict.

    Parameters
    ----------
    section
        Id, unique in the cohort.
    kind
        ``"visium"``, ``"visium_hd"`` (counts is the folder of one bin size), ``"st"``, ``"h5ad"``,
        ``"features"`` (slide is a file of patch features; a row without counts is a query), or ``"slide"`` for a slide
        without counts.
    slide, counts, spots
        Absolute paths; None where not given.
    patient, block, study
        Ids; None where not given.
    order
        Place of a serial section in its block.
    spots_frame
        Frame of the spot pixels: ``"fullres"``, ``"hires"``, ``"lowres"`` or ``"WxH"``.
    mpp
        µm per level-0 pixel, one number or (x, y); written ``0.5`` or ``4.62x4.16``.
    pitch_um
        Distance of neighbouring spots in µm.
    encoder, patch_um
        Of a file of patch features, as in `read_features`; None where the file tells them.
    role
        ``"reference"``, ``"held_out"`` or ``"query"``.
    """

    section: str
    kind: str
    slide: Path | None = None
    counts: Path | None = None
    spots: Path | None = None
    patient: str | None = None
    block: str | None = None
    study: str | None = None
    order: int | None = None
    spots_frame: str | None = None
    mpp: float | tuple[float, float] | None = None
    pitch_um: float | None = None
    encoder: str | None = None
    patch_um: float | None = None
    role: str = REFERENCE

    def given(self, cache_dir: str | Path | None) -> Given:
        """What the row says beside its files."""
        shared = {field.name for field in fields(Given)} & {field.name for field in fields(self)}
        return Given(**{name: getattr(self, name) for name in shared}, cache_dir=cache_dir)


COLUMNS = tuple(field.name for field in fields(Row))


class Cohort(Sequence[AnnData]):
    """The sections of a cohort, each read when first asked for and then kept.

    Only rows with counts are in the sequence; slides to predict are in `queries`.

    Parameters
    ----------
    rows
        What the manifest says.
    name
        Name of the cohort.
    cache_dir
        Cache folder; None for the default.
    sections
        Sections already read, by id; parts of a cohort share it.
    missing
        As in `read_cohort`.

    Raises
    ------
    OptionError
        If `missing` is not offered.

    Examples
    --------
    >>> cohort = read_cohort("cohort.csv")  # doctest: +SKIP
    >>> [section.n_obs for section in cohort.select(role="reference")]  # doctest: +SKIP
    """

    def __init__(
        self,
        rows: Iterable[Row],
        *,
        name: str = "cohort",
        cache_dir: str | Path | None = None,
        sections: dict[str, AnnData] | None = None,
        missing: str = "error",
    ) -> None:
        if missing not in get_args(Missing):
            raise OptionError(f"missing={missing!r} is not offered; choose from {', '.join(get_args(Missing))}")
        self.missing = cast(Missing, missing)
        self.rows = list(rows)
        self.name = name
        self._cache_dir = cache_dir
        self._sections: dict[str, AnnData] = {} if sections is None else sections
        self._with_counts = [row for row in self.rows if row.kind != SLIDE_KIND]

    @classmethod
    def from_sections(cls, sections: Iterable[AnnData], *, name: str = "cohort") -> Cohort:
        """A cohort, all of it reference, of sections already read.

        Raises
        ------
        MissingSlotError
            If a section has no id in ``uns["histoflow"]``.
        ManifestError
            If two have the same.
        """
        rows, kept = [], {}
        for place, section in enumerate(sections):
            known = facts(section)
            if "section" not in known:
                raise MissingSlotError(
                    f'section number {place} has no id in uns["{UNS}"]; hf.section_from_anndata makes it'
                )
            slide = Path(known["slide"]) if "slide" in known else None
            ids: dict[str, Any] = {key: known.get(key) for key in ("patient", "block", "study", "order")}
            rows.append(Row(section=str(known["section"]), kind=str(known.get("kind", "h5ad")), slide=slide, **ids))
            kept[rows[-1].section] = section
        _check_unique(rows, name)
        return cls(rows, name=name, sections=kept)

    @property
    def section_ids(self) -> list[str]:
        """Ids of the sections with counts, in order."""
        return [row.section for row in self._with_counts]

    @property
    def held_out_ids(self) -> list[str]:
        """Ids of the sections that are scored and never trained on, in order."""
        return [row.section for row in self._with_counts if row.role == HELD_OUT]

    @property
    def queries(self) -> list[Row]:
        """Rows to predict: slides without counts, and sections whose role is query."""
        return [row for row in self.rows if row.kind == SLIDE_KIND or row.role == QUERY]

    def select(self, *, role: str | None = None, sections: Iterable[str] | None = None) -> Cohort:
        """The part of the cohort with this role, with these section ids, or both; what was read is shared.

        Raises
        ------
        OptionError
            If the role or a section is unknown.
        """
        if role is not None and role not in ROLES:
            raise OptionError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
        wanted = {row.section for row in self.rows} if sections is None else set(sections)
        if unknown := wanted - {row.section for row in self.rows}:
            known = ", ".join(row.section for row in self.rows)
            raise OptionError(f"cohort {self.name} has no section {', '.join(sorted(unknown))}; it has {known}")
        return self._part(row for row in self.rows if row.section in wanted and role in (None, row.role))

    def _part(self, rows: Iterable[Row]) -> Cohort:
        return Cohort(rows, name=self.name, cache_dir=self._cache_dir, sections=self._sections, missing=self.missing)

    def __len__(self) -> int:
        return len(self._with_counts)

    @overload
    def __getitem__(self, index: int) -> AnnData: ...
    @overload
    def __getitem__(self, index: slice) -> Cohort: ...
    def __getitem__(self, index: int | slice) -> AnnData | Cohort:
        if isinstance(index, slice):
            return self._part(self._with_counts[index])
        row = self._with_counts[index]
        if row.section not in self._sections:
            self._sections[row.section] = _READERS[row.kind](row, row.given(self._cache_dir))
        return self._sections[row.section]

    def __iter__(self) -> Iterator[AnnData]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Cohort {self.name}: {len(self)} sections with counts, {len(self.queries)} to predict"


def _visium(row: Row, given: Given) -> AnnData:
    return visium_section(_path(row, "counts"), given)


def _visium_hd(row: Row, given: Given) -> AnnData:
    return visium_hd_section(_path(row, "counts"), given)


def _st(row: Row, given: Given) -> AnnData:
    return st_section(_path(row, "counts"), _path(row, "spots"), given)


def _h5ad(row: Row, given: Given) -> AnnData:
    return anndata_section(read_anndata(_path(row, "counts"), "AnnData"), given)


def _features(row: Row, given: Given) -> AnnData:
    path = _path(row, "slide")
    return features_section(path, given, encoder=row.encoder, counts=row.counts, patch_um=row.patch_um)


def _path(row: Row, column: str) -> Path:
    path: Path | None = getattr(row, column)
    if path is None:
        raise ManifestError(f"section {row.section} of kind {row.kind} has no {column}; give its path")
    return path


_READERS: dict[str, Callable[[Row, Given], AnnData]] = {
    "visium": _visium,
    "visium_hd": _visium_hd,
    FEATURES_KIND: _features,
    "st": _st,
    "h5ad": _h5ad,
}


def read_cohort(
    path: str | Path, *, missing: str = "error", cache_dir: str | Path | None = None, check_files: bool = True
) -> Cohort:
    """Read a cohort manifest; its sections are read when they are asked for.

    Parameters
    ----------
    path
        CSV, or TSV where it is named ``.tsv``: one row per section, columns as in `Row`. Relative paths start at the
        manifest's folder.
    missing
        What fits and evaluations of this cohort make of a panel gene that a section's table lacks: ``"error"``, for it
        was not measured; or ``"zero"``, for tables of one chemistry that were trimmed of genes without counts.
    cache_dir
        Cache folder; None for the default.
    check_files
        Whether files that do not exist are refused at once; if not, when their section is read.

    Raises
    ------
    OptionError
        If `missing` is not offered.
    ReadError
        If the manifest itself cannot be read.
    ManifestError
        If it is empty, has unknown or missing columns, or a cell is missing or wrong; if files do not exist, all of
        them are named.

    Examples
    --------
    >>> cohort = read_cohort("cohort.csv")  # doctest: +SKIP
    """
    path = existing_file(path, "manifest")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, delimiter=separator, strict=True)
            header, cells = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise ReadError(f"cannot read manifest {path} ({err}); save it as UTF-8 CSV or TSV") from err
    _check_header(header, path)
    rows = [_row(line, path, number) for number, line in enumerate(cells, start=2) if any(line.values())]
    if not rows:
        raise ManifestError(f"manifest {path} has no rows; write one per section")
    _check_unique(rows, path.name)
    if check_files:
        _check_files(rows, path)
    return Cohort(rows, name=path.stem, cache_dir=cache_dir, missing=missing)


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise ManifestError(f"manifest {path} is empty; its first line names columns of {', '.join(COLUMNS)}")
    for column in header:
        if column not in COLUMNS:
            near = get_close_matches(column, COLUMNS, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COLUMNS)}"
            raise ManifestError(f"manifest {path} has an unknown column {column!r}; {advice}")
    if repeated := sorted({column for column in header if header.count(column) > 1}):
        raise ManifestError(f"manifest {path} has column {', '.join(repeated)} more than once; keep one")
    if missing := {"section", "kind"} - set(header):
        raise ManifestError(f"manifest {path} lacks column {', '.join(sorted(missing))}")


def _row(line: dict[str, str], path: Path, number: int) -> Row:
    where = f"manifest {path.name}, row {number}"
    if None in line:
        raise ManifestError(f"{where} has more cells than there are columns; quote cells that hold the separator")
    cells = {column: cell.strip() for column, cell in line.items() if cell and cell.strip()}
    _require(cells, ("section", "kind"), where)
    kind = cells["kind"]
    if kind not in _NEEDED:
        raise ManifestError(f"{where}, column kind: got {kind!r}; this version reads {', '.join(_NEEDED)}")
    _require(cells, _NEEDED[kind], f"{where} ({cells['section']}, {kind})")
    uncounted = kind == SLIDE_KIND or (kind == FEATURES_KIND and "counts" not in cells)
    role = cells.setdefault("role", QUERY if uncounted else REFERENCE)
    if role not in ROLES or (uncounted and role != QUERY):
        offered = f"{QUERY}, as it has no counts" if uncounted else ", ".join(ROLES)
        raise ManifestError(f"{where}, column role: got {role!r}; a row of kind {kind} may be {offered}")
    if kind == SLIDE_KIND and "counts" in cells:
        raise ManifestError(f"{where}, column counts: a row of kind slide has none; leave it empty or name its kind")
    return Row(**{column: _value(column, cell, path.parent, where) for column, cell in cells.items()})


def _require(cells: dict[str, str], columns: Iterable[str], where: str) -> None:
    if missing := [column for column in columns if column not in cells]:
        raise ManifestError(f"{where} lacks {', '.join(missing)}; fill in these cells")


def _value(column: str, cell: str, folder: Path, where: str) -> Any:
    """A cell in the type of its column."""
    if column in _PATHS:
        # Not resolve(): a link keeps its own name, whose ending tells the format.
        return Path(os.path.abspath(folder / os.path.expanduser(cell)))
    if column not in _NUMBERS:
        return cell
    convert, wanted = _NUMBERS[column]
    try:
        return convert(cell)
    except ValueError as err:
        raise ManifestError(f"{where}, column {column}: got {cell!r}, wanted {wanted}") from err


def _positive(cell: str) -> float:
    if not 0 < float(cell) < math.inf:
        raise ValueError(cell)
    return float(cell)


def _mpp(cell: str) -> float | tuple[float, float]:
    mpp_x, _, mpp_y = cell.partition("x")
    return (_positive(mpp_x), _positive(mpp_y)) if mpp_y else _positive(cell)


_NUMBERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "order": (int, "a whole number"),
    "pitch_um": (_positive, "µm as a positive number"),
    "patch_um": (_positive, "µm as a positive number"),
    "mpp": (_mpp, "µm per pixel, such as 0.5 or 4.62x4.16"),
}


def _check_unique(rows: Sequence[Row], name: str) -> None:
    ids = [row.section for row in rows]
    if repeated := sorted({section for section in ids if ids.count(section) > 1}):
        raise ManifestError(f"cohort {name} has section {', '.join(repeated)} more than once; give each its own id")


def _check_files(rows: Sequence[Row], path: Path) -> None:
    named = [(row.section, column, getattr(row, column)) for row in rows for column in _PATHS]
    missing = [f"{section} {column} {file}" for section, column, file in named if file and not os.path.exists(file)]
    if missing:
        raise ManifestError(f"manifest {path} names files that do not exist: {'; '.join(missing)}")

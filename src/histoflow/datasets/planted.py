"""Toy cohort with planted truth: synthetic sections in the files of real instruments, and what drives their genes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoflow._errors import OptionError, OutputError, ReadError
from histoflow._files import atomic_path, cache_folder, file_hash, locked, read_json, value_hash, write_json
from histoflow._progress import track
from histoflow.datasets.arrays import SpotArray, st_array, visium_array
from histoflow.datasets.expression import draw_counts, log_rates, plant_genes
from histoflow.datasets.formats import write_jpg, write_space_ranger, write_st_tables, write_tiff
from histoflow.datasets.painting import Stain, paint
from histoflow.datasets.tissue import UM_PER_PX, Tissue, grow

if TYPE_CHECKING:
    from histoflow.io import Cohort

_MANIFEST, _STAMP = "cohort.csv", "toy.json"
_GENES, _LATENTS = "truth/genes.csv", "truth/latents.npz"
_NOT_TOY = {"catalogue.py", "remote.py"}
_ABOUT = "Synthetic H&E sections and counts, made by histoflow.datasets.write_toy. Not tissue of anybody."


@dataclass(frozen=True)
class _Plan:
    """One section to be made; sizes in µm, width before height."""

    section: str
    patient: str
    block: str
    study: str
    kind: str
    role: str
    mpp: float
    order: int = 1
    size_um: tuple[int, int] = (2400, 2304)
    radius_um: float = 960
    mean_counts: float = 3000


_PLANS = (
    _Plan("P1_A", "P1", "P1-1", "toy-visium", "visium", "reference", 1.0),
    _Plan(
        "P1_B", "P1", "P1-2", "toy-st", "st", "reference", 1.1, size_um=(3040, 2880), radius_um=1270, mean_counts=4000
    ),
    _Plan("P2_A", "P2", "P2-1", "toy-visium", "visium", "reference", 1.05),
    _Plan("P2_B", "P2", "P2-2", "toy-visium", "visium", "held_out", 1.0),
    _Plan("P2_C", "P2", "P2-3", "toy-visium", "slide", "query", 1.0),
)
_STAINS = {
    "P1": Stain(
        haematoxylin=np.array([0.66, 0.69, 0.30]), eosin=np.array([0.10, 0.70, 0.27]), glass=np.array([243, 241, 244])
    ),
    "P2": Stain(
        haematoxylin=np.array([0.62, 0.70, 0.33]), eosin=np.array([0.13, 0.74, 0.33]), glass=np.array([244, 242, 240])
    ),
}


@dataclass(frozen=True)
class ToyTruth:
    """What drives the genes of a toy cohort, and where.

    Parameters
    ----------
    drivers
        One row per gene: `driver` (texture, color, neighborhood or nothing), `base` (natural log of the rate),
        `dispersion` (of the negative binomial), a column of loadings for each field (cellularity, fibres, eosin,
        infiltrate, niche), and `offset_<patient>` (natural log).
    patients
        Patient of each section.
    latents
        Fields of each section, shape (n_fields, height, width), float32, in the order of the loading columns; mean 0
        and variance 1 on the tissue. Pixel (0, 0) lies in the slide's upper left corner.
    tissue
        Where there is tissue, shape (height, width), bool, for each section.
    um_per_px
        Side of a pixel of `latents` and `tissue` in µm.
    """

    drivers: pd.DataFrame
    patients: dict[str, str]
    latents: dict[str, np.ndarray]
    tissue: dict[str, np.ndarray]
    um_per_px: float = UM_PER_PX

    def log_rate(self, section: str) -> np.ndarray:
        """Natural log of every gene's rate at every pixel of a section, shape (n_genes, height, width).

        Raises
        ------
        OptionError
            If there is no such section.
        """
        if section not in self.latents:
            raise OptionError(f"section is {section!r}; the toy cohort has {', '.join(self.latents)}")
        return log_rates(self.drivers, self.patients[section], self.latents[section])


def toy(folder: str | Path | None = None, *, seed: int = 0) -> Cohort:
    """The toy cohort: two patients, four sections with counts, one slide without.

    Parameters
    ----------
    folder
        Where the files are, or are to be written; by default a place in the cache, written once for each seed.
    seed
        Every seed gives another cohort.

    Returns
    -------
    The cohort as `histoflow.read_cohort` reads it. P1_A, P1_B and P2_A are references, P2_B is held out, P2_C is a
    query. All but P1_B (legacy ST) are Visium.

    Raises
    ------
    OptionError
        If `seed` is negative.
    OutputError
        If `folder` holds anything else, or cannot be written.
    MissingDependencyError
        Without the packages that write slides.

    Examples
    --------
    >>> import histoflow as hf
    >>> cohort = hf.datasets.toy()
    """
    from histoflow.io import read_cohort

    place = _in_cache(seed) if folder is None else _once(Path(folder), seed)
    return read_cohort(place / _MANIFEST)


def write_toy(folder: str | Path, *, seed: int = 0) -> Path:
    """Write the toy cohort as the files of real instruments.

    Five synthetic H&E slides (tiled TIFF with its scale; one plain jpg), three Space Ranger folders, one pair of
    legacy ST tables, a manifest, and the truth. Genes named TEX follow the density of nuclei and the order of fibres,
    COL the amount of eosin, NBR the infiltrate within 275 µm (which the spot itself hardly shows), NIL nothing;
    mitochondrial, ribosomal and rarely detected genes are there to be left out. The same seed gives the same bytes.

    Parameters
    ----------
    folder
        Made; or an empty folder. Nothing is there until everything is written.
    seed
        Every seed gives another cohort.

    Returns
    -------
    Path of the manifest, `cohort.csv`.

    Raises
    ------
    OptionError
        If `seed` is negative.
    OutputError
        If `folder` is a file, is not empty, or cannot be written.
    MissingDependencyError
        Without the packages that write slides.

    Examples
    --------
    >>> import histoflow as hf
    >>> manifest = hf.datasets.write_toy("toy")
    """
    folder = Path(folder).resolve()
    if seed < 0:
        raise OptionError(f"seed is {seed}; give 0 or a positive number")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"folder {folder} is not an empty folder; give a new one, or empty it, to write the toy data")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _write_cohort(temporary, _PLANS, seed)
    return folder / _MANIFEST


def toy_truth(folder: str | Path) -> ToyTruth:
    """Read what was planted.

    Parameters
    ----------
    folder
        The folder given to `write_toy`.

    Raises
    ------
    ReadError
        If the folder holds no toy cohort, or its truth is damaged.

    Examples
    --------
    >>> import histoflow as hf
    >>> truth = hf.datasets.toy_truth(hf.datasets.write_toy("toy").parent)
    >>> truth.drivers.loc["COL03", "driver"]
    'color'
    """
    folder = Path(folder)
    try:
        drivers = pd.read_csv(folder / _GENES, index_col="gene")
        sections = pd.read_csv(folder / _MANIFEST, index_col="section")
        with (folder / _LATENTS).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            latents = {name: stored[f"{name}/fields"] for name in sections.index}
            tissue = {name: stored[f"{name}/tissue"] for name in sections.index}
    except (OSError, ValueError, KeyError, EOFError, ArithmeticError, zipfile.BadZipFile) as err:
        raise ReadError(f"folder {folder} holds no complete toy cohort ({err}); write_toy makes one") from err
    return ToyTruth(drivers, dict(sections["patient"]), latents, tissue)


def _recipe() -> str:
    """Hash of the code that makes the cohort: other code, other data."""
    files = [path for path in Path(__file__).parent.glob("*.py") if path.name not in _NOT_TOY]
    return value_hash({path.name: file_hash(path) for path in files})


def _in_cache(seed: int) -> Path:
    place = cache_folder() / "toy" / f"{seed}-{_recipe()[:12]}"
    with locked(place):
        return _once(place, seed)


def _once(folder: Path, seed: int) -> Path:
    """The folder, after writing the cohort there unless this very one is there."""
    stamp = folder / _STAMP
    if not (stamp.exists() and read_json(stamp) == _stamp(seed)):
        write_toy(folder, seed=seed)
    return folder


def _stamp(seed: int) -> dict[str, object]:
    return {"about": _ABOUT, "seed": seed, "recipe": _recipe()}


def _write_cohort(folder: Path, plans: Sequence[_Plan], seed: int) -> None:
    """Write everything; each section has its own stream of randomness, so one more changes none of the others."""
    genes = plant_genes(np.random.default_rng([seed, *b"genes"]), list(_STAINS))
    rows: list[dict[str, object]] = []
    latents: dict[str, np.ndarray] = {}
    for plan in track(plans, "toy sections"):
        rng = np.random.default_rng([seed, *plan.section.encode()])
        tissue = grow(rng, plan.size_um, plan.radius_um)
        rows.append(_write_section(folder, plan, tissue, genes, rng))
        latents |= {f"{plan.section}/fields": tissue.fields, f"{plan.section}/tissue": tissue.mask}
    (folder / _GENES).parent.mkdir()
    genes.to_csv(folder / _GENES)
    np.savez(folder / _LATENTS, allow_pickle=False, **latents)
    pd.DataFrame(rows).to_csv(folder / _MANIFEST, index=False)
    write_json(folder / _STAMP, _stamp(seed))


def _write_section(
    folder: Path, plan: _Plan, tissue: Tissue, genes: pd.DataFrame, rng: np.random.Generator
) -> dict[str, object]:
    """Write the files of one section, and give its row of the manifest."""
    painter, counter = rng.spawn(2)
    place = folder / plan.section
    place.mkdir()
    picture = paint(tissue, _stain(plan.patient, painter), mpp=plan.mpp, rng=painter)
    columns = ("section", "patient", "block", "order", "study", "kind", "role")
    row: dict[str, object] = {name: getattr(plan, name) for name in columns}
    if plan.kind == "st":
        write_jpg(place / "HE.jpg", picture)
        spots = st_array(plan.size_um, counter)
        spots = spots[spots.on(tissue)]
        write_st_tables(place, spots, _counts(plan, spots, tissue, genes, counter), mpp=plan.mpp)
        files = {"slide": "HE.jpg", "counts": "counts.tsv.gz", "spots": "spots_selection.tsv"}
    else:
        write_tiff(place / "HE.tif", picture, plan.mpp)
        files = {"slide": "HE.tif"}
    if plan.kind == "visium":
        spots = visium_array(plan.size_um)
        on = spots.on(tissue)
        counts = _counts(plan, spots[on], tissue, genes, counter)
        write_space_ranger(place / "outs", picture, spots, on_tissue=on, counts=counts, mpp=plan.mpp, rng=counter)
        files["counts"] = "outs"
    return row | {column: f"{plan.section}/{name}" for column, name in files.items()}


def _counts(
    plan: _Plan, spots: SpotArray, tissue: Tissue, genes: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    counts = draw_counts(genes, spots, tissue, patient=plan.patient, mean_counts=plan.mean_counts, rng=rng)
    return pd.DataFrame(counts, columns=genes.index)


def _stain(patient: str, rng: np.random.Generator) -> Stain:
    """The patient's stain as it came out that day: a few percent more or less of each dye, another glass."""
    usual = _STAINS[patient]
    more_haematoxylin, more_eosin = rng.normal(1, 0.03, 2)
    return Stain(
        haematoxylin=more_haematoxylin * usual.haematoxylin,
        eosin=more_eosin * usual.eosin,
        glass=usual.glass + rng.normal(0, 1, 3),
    )

"""What can be fetched: where each file is published, under which licence, and which SHA-256 it must have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from histoflow._errors import ReadError
from histoflow._files import file_hash, read_json
from histoflow.io import Row

CHECKSUMS = "checksums.json"
"""In the folder of a section: SHA-256 of the files for which the catalogue has none, as first downloaded."""
_HDF5 = (b"\x89HDF\r\n\x1a\n",)
_GZIP = (b"\x1f\x8b",)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Source:
    """Who publishes a data set.

    Parameters
    ----------
    name
        Of the data set; the folder of its sections.
    base_url
        Where its files are, with the last slash.
    licence
        Of the data; None where the publisher states none.
    citation
        What to cite.
    """

    name: str
    base_url: str
    licence: str | None
    citation: str

    @property
    def terms(self) -> str:
        """Licence and citation in one line."""
        return f"{self.name}: licence {self.licence or 'none stated by its source'}; cite {self.citation}"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a section.

    Parameters
    ----------
    name
        In the section's folder.
    path
        Below the source's `base_url`.
    sha256
        Of its bytes, 64 hex digits; None where it is recorded at the first download.
    begins
        How a file of its kind begins; not looked at when empty.
    unpacks
        Folder that an archive holds; it stands for the archive once it is there.
    """

    name: str
    path: str
    sha256: str | None = None
    begins: tuple[bytes, ...] = ()
    unpacks: str | None = None

    def present(self, folder: Path) -> bool:
        """Whether `folder` has the file, or what it unpacks."""
        return (folder / (self.unpacks or self.name)).exists()

    def expected(self, folder: Path) -> str | None:
        """The SHA-256 that the file in `folder` must have; None where nobody has told."""
        if self.sha256 is not None or not (folder / CHECKSUMS).is_file():
            return self.sha256
        recorded: str | None = read_json(folder / CHECKSUMS).get(self.name)
        return recorded

    def check(self, folder: Path) -> str:
        """The SHA-256 of the file in `folder`.

        Raises
        ------
        ReadError
            If it is not the expected one.
        """
        expected, got = self.expected(folder), file_hash(folder / self.name)
        if expected not in (None, got):
            raise ReadError(
                f"{folder / self.name} is damaged or not the published file: SHA-256 expected {expected}, got {got}; "
                "remove it, and the next call fetches it again"
            )
        return got


@dataclass(frozen=True)
class Entry:
    """One section of a data set.

    Parameters
    ----------
    section, patient, order
        Its ids, and its place among the serial sections of the patient's one block, which has the patient's id.
    kind
        ``"st"`` or ``"visium"``.
    source
        Who publishes it.
    place
        Its folder below that of the data set.
    files
        By what they are: counts, spots, slide, or anything else.
    spots_frame
        Frame of the spot pixels, as in a manifest.
    """

    section: str
    patient: str
    order: int
    kind: str
    source: Source
    place: str
    files: Mapping[str, RemoteFile]
    spots_frame: str | None = None

    @property
    def folder(self) -> Path:
        """Folder of the section, relative to any folder of data sets."""
        return Path(self.source.name, self.place)

    def row(self, folder: Path, parts: Iterable[str]) -> Row:
        """The manifest row of the section whose files lie in `folder`, of which it names these `parts`."""
        paths = {part: folder / self.files[part].name for part in parts}
        return Row(
            section=self.section,
            kind=self.kind,
            slide=paths.get("slide"),
            counts=folder if self.kind == "visium" else paths["counts"],
            spots=paths.get("spots"),
            patient=self.patient,
            block=self.patient,
            study=self.source.name,
            order=self.order,
            spots_frame=self.spots_frame,
        )


_HER2ST = Source(
    name="her2st",
    base_url="https://raw.githubusercontent.com/almaan/her2st/",
    licence=None,
    citation="Andersson et al., Nat. Commun. 12, 6012 (2021), doi:10.1038/s41467-021-26271-2",
)
# Files moved between commits of the repository, so each is named at the commit that holds it.
_OF_COUNTS = "e75e5c53a994726a8ad251aaf653a02d7932eb6a/data/ST-cnts"
_OF_TABLES = "9f2260c6aa8347996955d53f0a5f06ac14c93470/data"
_OF_DARK_IMAGES = "47b2e34be3bacfb7564095859c6a6003c26765d9/backup/app/www/imgs"


def _her2st(section: str, slide: str, sha256: Mapping[str, str], spots_frame: str | None = None) -> Entry:
    """A section of HER2ST; `slide` is the path of its image, `sha256` the hashes of its files by what they are."""
    paths = {
        "counts": ("counts.tsv.gz", f"{_OF_COUNTS}/{section}.tsv.gz"),
        "spots": ("spots_selection.tsv", f"{_OF_TABLES}/ST-spotfiles/{section}_selection.tsv"),
        "slide": (slide.rsplit("/", 1)[-1], slide),
        "labels": ("labeled_coordinates.tsv", f"{_OF_TABLES}/ST-pat/lbl/{section}_labeled_coordinates.tsv"),
    }
    return Entry(
        section=section,
        patient=section[0],
        order=int(section[1:]),
        kind="st",
        source=_HER2ST,
        place=section,
        files={part: RemoteFile(*paths[part], sha256=known) for part, known in sha256.items()},
        spots_frame=spots_frame,
    )


HER2ST: Mapping[str, Entry] = {
    "A1": _her2st(
        "A1",
        f"{_OF_DARK_IMAGES}/A1_HE_image_dark.png",
        {
            "counts": "d91035e5d8a9c4ce7865e4c61446deec1a7318602d41b3220e9fcb3ce7e41fe3",
            "spots": "e5f79223be2ea2aebb082c4759059ab7079b0132052d0944209048ac57788c5d",
            "slide": "e3836547df4772907bb537e53f41794fe4e603e9a6c99c1f6e91ef4342b95a6d",
            "labels": "23a0a68dccd54a8397ea4066994edb7110e88373d5b3bc6e35254dda9253fa5f",
        },
        spots_frame="6954x7435",
    ),
    "C2": _her2st(
        "C2",
        f"{_OF_TABLES}/ST-imgs/C/C2/5714_HE_BT_C2.jpg",
        {
            "counts": "c1c59ea6cffae36b9ecb561b8e2a97e3aa5f4085f748e991a0e330ed9d09773d",
            "spots": "235b5f4306b3b57c628ffc82c98c7109602474fbcc79a917b9c50517f99b6b1c",
            "slide": "26e2f73ae840cdd46c5bba405aae181f13a56a376b9848dff23f7a9c5de7f19e",
        },
    ),
    "C3": _her2st(
        "C3",
        f"{_OF_TABLES}/ST-imgs/C/C3/5714_HE_BT_D1.jpg",
        {
            "counts": "e00c55a3eb9caac5d9c71b8906aae8be8b38f93e23938f4a0ebee17683ef6a2a",
            "spots": "7fd76c13370b7804ac3bb377b846d22485cf9223f9dd8dfc25be06e5aaf65755",
            "slide": "0005a92674014d473040a28f0afca89ce5fa5c44019b479b638ceb3272ceb568",
        },
    ),
    "C4": _her2st(
        "C4",
        f"{_OF_TABLES}/ST-imgs/C/C4/5714_HE_BT_D2.jpg",
        {
            "counts": "33201f76d41d7131dc600a0f87d9a70383af3503e81698b4d11e6f2e8d73e9da",
            "spots": "47e79f3b9dbfa3a8c18af9e948ba7ba4bf0a75ea1b4c292bc714ced7d0917d4c",
            "slide": "f40607eb1d5f0d125decd71c48b0c5d29cf6776ad92297fd185631208c82d6f2",
        },
    ),
    "C5": _her2st(
        "C5",
        f"{_OF_TABLES}/ST-imgs/C/C5/5714_HE_BT_E1.jpg",
        {
            "counts": "c0f310315ca6110d74dbdf7011e5b42432ba0b8eb5f001824764911988f39338",
            "spots": "2114cc3b4da759772112897f1e247d5443c9f8c808e6a9a952eb4fda379a194c",
            "slide": "34028ea41e376396b50c42b0a11a7e689c85be4a8022e668d0a09cc128c04c65",
        },
    ),
}
"""Sections of HER2-positive breast tumours on legacy ST arrays, 200 µm between spots, by their names there."""

_BREAST = Source(
    name="breast",
    base_url="https://cf.10xgenomics.com/samples/spatial-exp/1.1.0/",
    licence="not checked here, see the page of the data set",
    citation="10x Genomics, Human Breast Cancer (Block A Sections 1 and 2), Space Ranger 1.1.0",
)
_BLOCK = "V1_Breast_Cancer_Block_A"


def _breast(number: int) -> Entry:
    name = f"{_BLOCK}_Section_{number}"

    def file(ending: str, begins: tuple[bytes, ...], unpacks: str | None = None) -> RemoteFile:
        return RemoteFile(f"{name}_{ending}", f"{name}/{name}_{ending}", begins=begins, unpacks=unpacks)

    files = {
        "counts": file("filtered_feature_bc_matrix.h5", _HDF5),
        "spatial": file("spatial.tar.gz", _GZIP, unpacks="spatial"),
        "slide": file("image.tif", _TIFF),
    }
    place = f"section_{number}"
    return Entry(name, _BLOCK, number, "visium", _BREAST, place, files)


BREAST: Mapping[int, Entry] = {number: _breast(number) for number in (1, 2)}
"""The two Visium sections of one breast tumour block, by their number."""

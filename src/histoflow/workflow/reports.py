"""The report, from a folder or a file to a page; and the pictures of tissue that an evaluation keeps for it. Thin."""

from __future__ import annotations

import io as text_io
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image

from histoflow import bench, io
from histoflow._errors import MissingSlotError, OptionError, ReadError, SlideMismatchError
from histoflow._files import atomic_path, file_name, read_json, write_json
from histoflow._keys import SPATIAL_UM, UNS, section_name
from histoflow.io.tissue import thumbnail

if TYPE_CHECKING:
    from wsidata import WSIData

RESULTS, PROTOCOL, PICTURES = "results.parquet", "protocol.json", "thumbnails"
_SIDE_PX, _SLIDE_PX, _QUALITY = 1000, 4000, 80
_MARGIN_UM = 300.0


def report(source: str | Path, out: str | Path) -> Path:
    """Write the report of an evaluation, or of a prediction, as one HTML page that opens anywhere.

    Parameters
    ----------
    source
        The folder of an evaluation, or the h5ad of a prediction.
    out
        Where the page goes, as ``.html``.

    Returns
    -------
    `out`.

    Raises
    ------
    OptionError
        If `out` does not end in ``.html``.
    ReadError
        If `source` is neither.
    MissingDependencyError
        If plotly is not installed.
    """
    source, out = Path(source), Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"out is {out}; give a name that ends in .html")
    bench.check_library()
    page = _evaluation(source) if source.is_dir() and source.suffix.lower() != ".zarr" else _prediction(source)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _evaluation(folder: Path) -> str:
    path = folder / RESULTS
    if not path.is_file():
        raise ReadError(f"{folder} holds no {RESULTS}; give the folder of histoflow evaluate, or a predicted h5ad")
    protocol = folder / PROTOCOL
    return bench.evaluation_page(
        pd.read_parquet(path),
        partial(_kept_prediction, folder),
        protocol=read_json(protocol) if protocol.is_file() else None,
        pictures=read_pictures(folder),
        source=str(folder),
    )


def _kept_prediction(folder: Path, fold: str, section: str, model: str, seed: int) -> AnnData:
    return bench.read_prediction(folder, fold=fold, section=section, model=model, seed=seed)


def _prediction(path: Path) -> str:
    predicted = read_predicted(path)
    picture, reason = _own_picture(predicted)
    return bench.prediction_page(predicted, picture=picture, no_picture=reason, source=str(path))


def read_predicted(path: Path) -> AnnData:
    """Read a prediction that `histoflow predict` wrote.

    Raises
    ------
    ReadError
        If it is missing, damaged, or no prediction.
    """
    if path.suffix.lower() != ".h5ad" or not path.is_file():
        raise ReadError(f"{path} is no prediction; give an h5ad of histoflow predict, or the folder of an evaluation")
    return io.read_anndata(path, "prediction")


def _own_picture(predicted: AnnData) -> tuple[bench.Picture | None, str]:
    """Picture of the slide that a prediction was made on, or why there is none."""
    try:
        return tissue_picture(io.open_section_slide(predicted), predicted.obsm[SPATIAL_UM]), ""
    except (MissingSlotError, ReadError, SlideMismatchError) as err:
        return None, str(err)


def tissue_picture(wsi: WSIData, xy_um: Any) -> bench.Picture:
    """Take a small picture of the part of a slide that some places lie on.

    Parameters
    ----------
    wsi
        An opened slide.
    xy_um
        Places, shape (n_places, 2), x, y in µm from the slide's upper left corner.

    Returns
    -------
    At most 1000 pixels a side, and the place it shows.
    """
    known = wsi.attrs[UNS]
    size_um = np.array(known["slide_size_px"], dtype=float) * [known["mpp_x"], known["mpp_y"]]
    low = np.clip(np.min(xy_um, axis=0) - _MARGIN_UM, 0, size_um)
    high = np.clip(np.max(xy_um, axis=0) + _MARGIN_UM, 0, size_um)
    share = float(np.max((high - low) / size_um.max()))
    whole = thumbnail(wsi, most_px=int(min(_SLIDE_PX, _SIDE_PX / max(share, 1e-6))))
    um_per_px = size_um / [whole.shape[1], whole.shape[0]]
    (left, top), (right, bottom) = (low / um_per_px).astype(int), np.ceil(high / um_per_px).astype(int)
    part = whole[top:bottom, left:right]
    written = text_io.BytesIO()
    Image.fromarray(part).save(written, "JPEG", quality=_QUALITY)
    edges = np.array([left, left + part.shape[1], top, top + part.shape[0]]) * np.repeat(um_per_px, 2)
    return bench.Picture(written.getvalue(), (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3])))


def keep_pictures(folder: Path, sections: Sequence[AnnData], names: Iterable[str]) -> None:
    """Keep pictures of the tissue of sections, as ``thumbnails/SECTION.jpg`` and their places in µm beside them.

    Parameters
    ----------
    folder
        Of an evaluation.
    sections
        Those that came as patch features have no slide, and get no picture.
    names
        Which of them.
    """
    wanted = set(names)
    for section in sections:
        if section_name(section) not in wanted or section.uns[UNS].get("kind") == "features":
            continue
        picture = tissue_picture(io.open_section_slide(section), section.obsm[SPATIAL_UM])
        path = folder / PICTURES / f"{file_name(section_name(section))}.jpg"
        with atomic_path(path) as temporary:
            temporary.write_bytes(picture.jpeg)
        write_json(path.with_suffix(".json"), {"extent_um": list(picture.extent_um)})


def read_pictures(folder: Path) -> dict[str, bench.Picture]:
    """Read what `keep_pictures` kept, by section."""
    found = {}
    for path in sorted((folder / PICTURES).glob("*.jpg")):
        left, right, top, bottom = read_json(path.with_suffix(".json"))["extent_um"]
        found[unquote(path.stem)] = bench.Picture(path.read_bytes(), (left, right, top, bottom))
    return found

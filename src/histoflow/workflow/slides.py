"""The verbs of `ov.space.histo` on a WSIData: tile, embed, predict from a paired reference, match spots and tiles.

Each reference brings its own slide; nothing is cut from the slide that is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import KDTree

from histoflow import io, models
from histoflow._errors import MissingSlotError, OptionError, SlideMismatchError
from histoflow._files import read_json
from histoflow._keys import (
    EMBEDDINGS,
    LOWER,
    SPATIAL,
    SPATIAL_UM,
    STD,
    UNS,
    UPPER,
    check_section,
    facts,
    section_name,
)
from histoflow.io.polygons import read_polygons
from histoflow.pp import DenseEmbedder, Embedder, Encoder, Panel, available_encoders, choose_panel, get_encoder
from histoflow.pp.tiles import TILES, TISSUES, annotate_tiles, cut_tiles, restrict_tissue, slide_facts, tile_um
from histoflow.workflow.cohorts import embedder, sized_for
from histoflow.workflow.zeroshot import zero_shot

if TYPE_CHECKING:
    from wsidata import WSIData

HISTO = "histo"
"""``uns`` entry of the API that people know: what the text prints, and nothing else."""
_METHODS = ("stflow", "hest_fm", "istar", "stpath")
_ANY_BACKBONE, _GIGAPATH = "ctranspath", "gigapath"


def tile(
    wsi: WSIData,
    tile_px: int = 224,
    *,
    mpp: float = 0.5,
    tissue_key: str = TISSUES,
    tile_key: str = TILES,
    find: Mapping[str, Any] | None = None,
    polygons: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> WSIData:
    """Outline the tissue of a slide and lay tiles over it, with LazySlide.

    Parameters
    ----------
    wsi
        A slide from `open_wsi`; gets ``shapes[tissue_key]`` (unless it is there) and ``shapes[tile_key]``.
    tile_px
        Side of a tile in pixels of `mpp` µm. On a slide whose own pixels are coarser, tiles of the same µm are laid at
        its own scale.
    mpp
        µm per pixel of the tiles.
    tissue_key, tile_key
        Names of outlines and tiles.
    find
        Parameters of LazySlide's `find_tissues` that differ from ours.
    polygons
        ``{"include": path, "exclude": path}``, GeoJSON files with polygons in level-0 pixels, as QuPath writes them:
        tissue outside the first, or inside the second, is left out.
    **options
        Parameters of LazySlide's `tile_tissues`, such as `stride_px`, `overlap`, `background_fraction`.

    Returns
    -------
    The slide.

    Raises
    ------
    OptionError
        If size or scale is not a positive number, or `polygons` has other keys.
    ReadError
        If a GeoJSON file is missing or holds no polygon.
    SlideMismatchError
        If no tissue, or no tile on it, is found.
    """
    if polygons:
        restrict_tissue(wsi, tissue_key, {side: read_polygons(path) for side, path in polygons.items()}, find)
    cut_tiles(wsi, tile_px, mpp, tissue_key=tissue_key, tile_key=tile_key, find=find, **options)
    return wsi


def available_backbones() -> list[str]:
    """Names of the encoders that are usable on this machine; `histoflow encoders` tells the others and why not."""
    return [info.name for info in available_encoders() if info.usable]


def read_visium_with_image(
    visium_path: str | Path,
    image_path: str | Path | None = None,
    *,
    library_id: str | None = None,
    mpp: float | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[AnnData, WSIData]:
    """Read a Space Ranger output together with its slide.

    Parameters
    ----------
    visium_path
        As `outs` of `read_visium`.
    image_path
        The full-resolution image that Space Ranger aligned; None for the hires image, which is said in a warning.
    library_id
        Id of the section; None for the name of its folder.
    mpp
        µm per level-0 pixel, as in `read_visium`.
    cache_dir
        Cache folder; None for the default.

    Returns
    -------
    The section, as from `read_visium`, with scanpy's ``uns["spatial"]`` and the slide's path in
    ``uns["histo"]["wsi_path"]``; and the opened slide.

    Raises
    ------
    ReadError, SlideMismatchError, ResolutionError, CountsError
        As `read_visium`.
    """
    section = io.read_visium(visium_path, slide=image_path, mpp=mpp, section=library_id, cache_dir=cache_dir)
    known = facts(section)
    section.uns[SPATIAL] = {section_name(section): _library_record(Path(visium_path), str(known["slide"]))}
    section.uns[HISTO] = {"wsi_path": str(known["slide"])}
    return section, io.open_section_slide(section, cache_dir=cache_dir)


def _library_record(visium_path: Path, slide: str) -> dict[str, Any]:
    """What scanpy keeps of a library: scale factors and where the slide is."""
    outs = next(folder for folder in (visium_path, visium_path / "outs") if (folder / "spatial").is_dir())
    return {
        "images": {},
        "scalefactors": read_json(outs / "spatial" / "scalefactors_json.json"),
        "metadata": {"source_image_path": slide},
    }


def spot_features(
    reference: AnnData,
    wsi: WSIData | None = None,
    *,
    fm_backbone: str | Encoder = "scatter",
    fm_weight_path: str | Path | None = None,
    patch_um: float = 112.0,
    cache_dir: str | Path | None = None,
    device: str = "cpu",
) -> AnnData:
    """Embed the spots of a reference from its own slide.

    Parameters
    ----------
    reference
        A section, or a Visium AnnData that `section_from_anndata` takes.
    wsi
        Its slide; None for the one it records.
    fm_backbone
        An encoder, or the name of one, as `pp.get_encoder` takes it.
    fm_weight_path
        Its weights as a local file; None for where it finds them itself.
    patch_um
        Side of the smaller field of view in µm.
    cache_dir
        Cache folder; None for the default.
    device
        Where the encoder runs.

    Returns
    -------
    AnnData, X float32 (n_spots, n_features), rows in the order of `reference`.

    Raises
    ------
    MissingSlotError
        If no slide is recorded and none given.
    SlideMismatchError
        If spots and slide do not belong together.
    """
    make = sized_for(embedder(fm_backbone, weights=fm_weight_path, cache_dir=cache_dir, device=device), patch_um)
    section = embedded(reference, wsi, make)
    features = AnnData(X=section.obsm[make.slot], obs=section.obs.copy())
    features.obsm[SPATIAL], features.uns[UNS] = section.obsm[SPATIAL], section.uns[UNS]
    return features


def predict_expression(
    wsi: WSIData,
    *,
    method: str = "stflow",
    reference: AnnData | Sequence[AnnData] | None = None,
    reference_wsi: WSIData | Sequence[WSIData] | None = None,
    model: models.Estimator | None = None,
    genes: Sequence[str] | None = None,
    n_top_genes: int = 50,
    fm_backbone: str | Encoder = _ANY_BACKBONE,
    tile_key: str = TILES,
    feature_key: str | None = None,
    key_added: str | None = None,
    organ: str | None = None,
    tech: str = "Visium",
    n_epochs: int = 80,
    n_layers: int = 4,
    n_neighbors: int = 8,
    n_sample_steps: int = 5,
    hidden_dim: int = 256,
    batch_size: int = 1,
    n_samples: int = 16,
    weight_path: str | Path | None = None,
    fm_weight_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    hf_token: str | None = None,
    device: str | None = None,
    seed: int = 0,
) -> AnnData:
    """Fit on paired references, or take a fitted or pretrained model, and predict the tiles of a slide.

    Parameters
    ----------
    wsi
        The slide to predict, with tiles from `tile`.
    method
        ``"stflow"``, ``"hest_fm"``, ``"istar"``, which are fitted on `reference`; or ``"stpath"``, which is pretrained.
    reference
        Section with counts, or several; each brings its own slide. None with `model`, and for ``"stpath"``.
    reference_wsi
        Slides of the references, in their order; None for those that they record.
    model
        A fitted estimator: nothing is trained, and options of encoder, panel and training are its own.
    genes
        The panel; None to choose `n_top_genes` by variance, and for ``"stpath"`` all that its weights know.
    n_top_genes
        Size of a chosen panel.
    fm_backbone
        Encoder of the patches, or the name of one, as `pp.get_encoder` takes it; ``"stpath"`` takes gigapath where this
        stays at its default.
    tile_key, key_added
        Names of the tiles, and of the result: ``tables["{key_added or method}_{tile_key}"]``.
    feature_key
        Table of tiles from `embed`, ``"scatter"`` or ``"scatter_tiles"``, whose encoder is taken in place of
        `fm_backbone`.
    organ, tech, weight_path
        Of ``"stpath"``, as in `models.STPathZeroShot`, its vocabulary beside its weights; other methods refuse `organ`
        and `weight_path`.
    n_epochs
        Epochs at most; how many is chosen inside the training data.
    n_layers, n_neighbors, hidden_dim
        Sizes of the denoiser, as in `models.Network`.
    n_sample_steps, batch_size, n_samples, seed
        As in `models.STFlow`, `models.Training` and `Estimator.predict`.
    fm_weight_path
        Weights of the encoder as a local file, for reference and query alike.
    cache_dir
        Cache folder; None for the default.
    hf_token
        Token of the Hugging Face hub for gated weights; None for the one that the hub's own settings hold.
    device
        Where encoder and network run; None for the processor.

    Returns
    -------
    Tiles × genes: X float32, log1p of counts per 10,000, of raw counts for ``"stpath"``; ``obs`` tile_id, library_id;
    ``var`` the reference's columns, or gene_ids;
    ``obsm["spatial"]`` centres in level-0 pixels; ``uns["histo"]`` method, fm_backbone, n_epochs, n_layers,
    n_sample_steps; everything else in ``uns["histoflow"]``. Also in ``wsi.tables``.

    Raises
    ------
    OptionError
        If the method is not offered, or neither, or both, of reference and model are given.
    MissingSlotError
        If the slide has no tiles, or a reference no slide.
    EncoderMismatchError
        If a reference or the model was embedded with another encoder or patch size than the tiles.
    PanelMismatchError
        If a reference, or the vocabulary of the pretrained model, lacks a gene of the panel.
    WeightsError
        If the pretrained model's weights or vocabulary are missing or do not belong together.
    """
    pretrained = method == models.STPathZeroShot.name and model is None
    if not pretrained and (organ is not None or weight_path is not None):
        raise OptionError(f"organ= and weight_path= mean nothing for method {method}, which is fitted on the reference")
    runs_on = device or "cpu"
    of_table = model is None and feature_key is not None
    seen_by = _encoder_of_table(wsi, str(feature_key), tile_key) if of_table else fm_backbone
    hub: dict[str, Any] = {"weights": fm_weight_path, "token": hf_token, "cache_dir": cache_dir}
    columns: pd.DataFrame | None = None
    if pretrained:
        seen_by = _gigapath(seen_by, reference)
        model = zero_shot(weight_path, organ=organ, tech=tech, genes=genes, device=runs_on)
        made = model.embedding_
        make = embedder(_encoder(seen_by, **hub), made=made, cache_dir=cache_dir, device=runs_on)
    elif model is None:
        options = {
            "network": {"n_layers": n_layers, "n_neighbors": n_neighbors, "hidden_dim": hidden_dim},
            "training": {"max_epochs": n_epochs, "batch_size": batch_size},
            "n_sample_steps": n_sample_steps,
            "device": runs_on,
        }
        dense = method == models.SubspotRegressor.name
        make = embedder(_encoder(seen_by, **hub), dense=dense, cache_dir=cache_dir, device=runs_on)
        make = sized_for(make, tile_um(wsi, tile_key))
        estimator = _estimator(method, make.encoder.name, seed, options)
        references = _references(reference, reference_wsi, make)
        panel = choose_panel(references, n_top_genes) if genes is None else Panel(tuple(genes))
        model, columns = estimator.fit(references, panel=panel), references[0].var
    elif reference is not None or model.encoder is None:
        raise OptionError("model= takes no reference beside it, and must look at the image: hest_fm, stflow or istar")
    else:
        how: dict[str, Any] = {"dense": model.dense, "made": model.embedding_, "weights": fm_weight_path}
        make = embedder(model.encoder, cache_dir=cache_dir, device=runs_on, **how)
    predicted = model.predict(make.laid_tiles(wsi, tile_key), n_samples=n_samples)
    result = _as_printed(predicted, model, columns, tile_key)
    wsi.tables[f"{key_added or model.method}_{tile_key}"] = result
    return result


def _estimator(method: str, encoder: str, seed: int, options: dict[str, Any]) -> models.Estimator:
    """The estimator of a method; `options` are the flow's, of which the regressor takes epochs and device."""
    if method not in _METHODS:
        raise OptionError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    made = models.from_name(method, encoder=encoder, seed=seed)
    if isinstance(made, models.SubspotRegressor):
        training = replace(made.training, max_epochs=options["training"]["max_epochs"])
        return made.clone(training=training, device=options["device"])
    if isinstance(made, models.STFlow):
        sizes = replace(made.network, **options["network"])
        return made.clone(**options | {"network": sizes, "training": replace(made.training, **options["training"])})
    return made


def _encoder(encoder: str | Encoder, **where: Any) -> Encoder:
    return encoder if isinstance(encoder, Encoder) else get_encoder(encoder, **where)


def _gigapath(encoder: str | Encoder, reference: Any) -> str | Encoder:
    """The encoder that the pretrained model looks through; what is given must be it, or stay at its default."""
    if reference is not None:
        raise OptionError("method stpath is pretrained and learns nothing of a reference; leave reference= out")
    if encoder == _ANY_BACKBONE:
        return _GIGAPATH
    name = encoder.name if isinstance(encoder, Encoder) else encoder
    if name != _GIGAPATH:
        raise OptionError(f"method stpath looks through {_GIGAPATH} alone, but fm_backbone or feature_key names {name}")
    return encoder


def _encoder_of_table(wsi: WSIData, feature_key: str, tile_key: str) -> str:
    """Name of the encoder that made a table of tiles."""
    name = feature_key.removesuffix(f"_{tile_key}")
    table = wsi.tables.get(f"{name}_{tile_key}")
    if table is None or name not in facts(table).get(EMBEDDINGS, {}):
        raise MissingSlotError(f'this slide has no tables["{name}_{tile_key}"] from hf.embed; hf.embed makes it')
    return name


def _references(
    reference: AnnData | Sequence[AnnData] | None,
    slides: WSIData | Sequence[WSIData] | None,
    make: Embedder | DenseEmbedder,
) -> list[AnnData]:
    """Sections of the references, each embedded from its own slide."""
    sections = [reference] if isinstance(reference, AnnData) else list(reference or [])
    if not sections:
        raise OptionError("give reference=, sections to fit on, or model=, a fitted estimator")
    opened = list(slides) if isinstance(slides, Sequence) else [slides] * (1 if slides is not None else 0)
    if opened and len(opened) != len(sections):
        raise OptionError(f"got {len(sections)} references and {len(opened)} slides; give one slide for each")
    return [embedded(s, w, make) for s, w in zip(sections, opened or [None] * len(sections), strict=True)]


def embedded(reference: AnnData, wsi: WSIData | None, make: Embedder | DenseEmbedder) -> AnnData:
    """A new section of a reference, embedded from its slide."""
    slide = None if wsi is None else str(slide_facts(wsi)["slide"])
    if slide is None and not (facts(reference) or HISTO in reference.uns or SPATIAL in reference.uns):
        raise MissingSlotError("the reference records no slide; give its own with reference_wsi=")
    if facts(reference) and slide is None:
        section = reference.copy()
    else:
        section = io.section_from_anndata(reference, slide=slide, cache_dir=make.cache_dir)
    if wsi is not None and facts(section)["slide_id"] != slide_facts(wsi)["slide_id"]:
        raise SlideMismatchError(f"the slide given for section {section_name(section)} is not its own")
    recorded = facts(section).get(EMBEDDINGS, {})
    if make.slot in section.obsm and make.slot in recorded:
        return section
    return make.section(section, wsi or io.open_section_slide(section, cache_dir=make.cache_dir))


def _as_printed(predicted: AnnData, model: models.Estimator, columns: pd.DataFrame | None, tile_key: str) -> AnnData:
    """The result in the shape that the text prints, and more only where it names no field."""
    options = model.inside.options()
    result = AnnData(X=predicted.X, obs=predicted.obs[["tile_id"]].copy())
    result.var = predicted.var.copy() if columns is None else columns.reindex(predicted.var_names)
    result.obsm[SPATIAL], result.obsm[SPATIAL_UM] = predicted.obsm[SPATIAL], predicted.obsm[SPATIAL_UM]
    for layer in (STD, LOWER, UPPER):
        if layer in predicted.layers:
            result.layers[layer] = predicted.layers[layer]
    result.uns[UNS] = predicted.uns[UNS]
    result.uns[HISTO] = {
        "method": model.method,
        "fm_backbone": model.encoder,
        "n_epochs": options.get("training", {}).get("max_epochs", 0),
        "n_layers": options.get("network", {}).get("n_layers", 0),
        "n_sample_steps": options.get("n_sample_steps", 0),
    }
    return annotate_tiles(result, tile_key)


@dataclass(frozen=True)
class Pairs:
    """Spots paired with tiles.

    Attributes
    ----------
    table
        Columns spot and tile (row numbers) and distance_um; one row per paired spot.
    n_unmatched
        Spots without a tile within reach.
    """

    table: pd.DataFrame
    n_unmatched: int


def match(pred: AnnData, adata: AnnData, *, max_um: float | None = None) -> Pairs:
    """Pair every spot with its nearest tile, unless that is too far away.

    Predicting at the spots themselves, ``model.predict(section)``, needs no pairing and is the better way.

    Parameters
    ----------
    pred
        A prediction on tiles, with ``obsm["spatial_um"]``.
    adata
        A section of the same slide.
    max_um
        Farthest distance in µm; None for half the diagonal of a tile.

    Returns
    -------
    Pairs, by row number, and how many spots have none.

    Raises
    ------
    MissingSlotError
        If either has no places in µm.
    SlideMismatchError
        If they are of different slides.
    """
    for table in (pred, adata):
        check_section(table, needs=[SPATIAL_UM, UNS])
    slides = [facts(table).get("slide_id") for table in (pred, adata)]
    if slides[0] != slides[1]:
        raise SlideMismatchError("prediction and section are of different slides: their places have nothing in common")
    reach = max_um if max_um is not None else float(facts(pred).get("pitch_um", np.nan)) / np.sqrt(2)
    if not reach > 0:
        raise OptionError(f"max_um is {reach}; give a distance in µm above 0")
    distance, nearest = KDTree(pred.obsm[SPATIAL_UM]).query(adata.obsm[SPATIAL_UM])
    near = distance <= reach
    table = pd.DataFrame({"spot": np.flatnonzero(near), "tile": nearest[near], "distance_um": distance[near]})
    return Pairs(table, int((~near).sum()))

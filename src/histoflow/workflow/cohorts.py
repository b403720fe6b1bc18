"""The verbs that people know, from paths to results: embed, fit, predict, evaluate, demo. Thin: the work is below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow import bench, datasets, io, models, pl
from histoflow._errors import OptionError, WeightsError
from histoflow._files import atomic_path
from histoflow._keys import DENSE, EMBEDDINGS, SPATIAL_UM, STD, UNS, facts, section_name
from histoflow.io.tissue import thumbnail
from histoflow.pp import DenseEmbedder, Embedder, Encoder, Panel, Recipe, choose_panel, get_encoder
from histoflow.pp.expression import keep_spots
from histoflow.pp.tiles import TILES, tile_um

if TYPE_CHECKING:
    from wsidata import WSIData

_N_SHOWN = 4
_TILE_UM = 112.0
_DEMO_TRAINING: dict[str, int] = {"max_epochs": 10, "n_members": 1, "n_searches": 1}
"""Enough to see what the flow finds in three minutes on two cores; a real fit takes more."""


def embedder(
    encoder: str | Encoder = "scatter",
    *,
    dense: bool = False,
    made: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> Embedder | DenseEmbedder:
    """Make what embeds places the way a model's training sections were embedded.

    Parameters
    ----------
    encoder
        An encoder, or the name of one, as `pp.get_encoder` takes it; ``"<name>_dense"`` for its super-pixels.
    dense
        Whether places are described by their super-pixels rather than by patches.
    made
        How: the ``embedding_`` of a fitted model; None for the encoder's default recipe.
    weights
        Its weights as a local file; None for where it finds them itself.
    cache_dir
        Cache folder; None for the default.
    batch_size
        Patches encoded at once; it never changes a number.
    device
        Where the encoder runs.

    Raises
    ------
    OptionError
        If there is no such encoder.
    WeightsError
        If its weights cannot be had.
    EncoderMismatchError
        If super-pixels are wanted of an encoder that only describes patches.
    """
    if isinstance(encoder, str) and encoder.endswith(DENSE):
        encoder, dense = encoder.removesuffix(DENSE), True
    ready = _encoder(encoder, weights, cache_dir, of_model=made is not None)
    if dense:
        return DenseEmbedder(ready, cache_dir, device=device)
    if made is not None:
        sizes = {key: tuple(map(float, made[key])) for key in ("patch_um", "context_um")}
        recipe = Recipe(**sizes, grid_um=float(made["grid_um"]))
    else:
        recipe = Recipe(context_um=()) if ready.name == "color" else Recipe()
    return Embedder(ready, recipe, cache_dir, batch_size, device)


def _encoder(
    encoder: str | Encoder, weights: str | Path | None, cache_dir: str | Path | None = None, *, of_model: bool = False
) -> Encoder:
    if isinstance(encoder, Encoder):
        return encoder
    try:
        return get_encoder(encoder, weights=weights, cache_dir=cache_dir)
    except OptionError as err:
        if not of_model or weights is not None:
            raise
        raise WeightsError(
            f"the model looks through encoder {encoder}, which is in no registry here; give its file with weights=, "
            "or --weights on the command line"
        ) from err


def embed(
    target: AnnData | Sequence[AnnData] | WSIData,
    model: str | Encoder = "scatter",
    *,
    tile_key: str = TILES,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = 32,
    num_workers: int = 1,
    device: str = "cpu",
) -> Any:
    """Embed a section, every section of a cohort, or the tiles of an opened slide.

    Parameters
    ----------
    target
        Sections get float32 ``obsm[model]``, (n_spots, n_features), in place; a slide gets
        ``tables["{model}_{tile_key}"]``.
    model
        An encoder, or the name of one, as `pp.get_encoder` takes it; ``"<name>_dense"`` for the super-pixels of
        sections, which `models.SubspotRegressor` looks at.
    tile_key
        Tiles of a slide, from `tile`: their size is the smaller field of view. Laid at 112 µm if there are none.
    weights
        Weights of the encoder as a local file; None for where it finds them itself.
    cache_dir, batch_size, num_workers, device
        As in `pp.Embedder`; 0 workers are one.

    Returns
    -------
    `target`.

    Raises
    ------
    OptionError
        If super-pixels are asked for of the tiles of a slide.
    """
    make = embedder(model, weights=weights, cache_dir=cache_dir, batch_size=batch_size, device=device)
    if isinstance(target, AnnData | Sequence):
        for section in [target] if isinstance(target, AnnData) else target:
            make.section(section, io.open_section_slide(section, cache_dir=cache_dir))
        return target
    if isinstance(make, DenseEmbedder):
        raise OptionError(
            f"model is {model!r}, the super-pixels of spots; a slide without spots takes hf.super_resolve"
        )
    make = replace(make, num_workers=max(1, num_workers))
    if tile_key in target.shapes:
        sized_for(make, tile_um(target, tile_key)).laid_tiles(target, tile_key)
    else:
        make.tiles(target, _TILE_UM)
    return target


def sized_for(make: Embedder | DenseEmbedder, patch_um: float) -> Embedder | DenseEmbedder:
    """The same embedder with other fields of view: as wide as a tile of `patch_um`, and twice as wide.

    Super-pixels are of one size.
    """
    if isinstance(make, DenseEmbedder):
        return make
    return replace(make, recipe=replace(make.recipe, patch_um=(patch_um, 2 * patch_um)))


def embed_for(
    sections: Iterable[AnnData], estimators: Iterable[models.Estimator], *, encoder: Encoder | None = None
) -> None:
    """Embed sections by every encoder that these estimators look through; what is embedded already stays as it is.

    Parameters
    ----------
    sections
        Embedded in place.
    estimators
        What is going to look at them.
    encoder
        An encoder at hand: for estimators that look through one of its name, sections are embedded by it in any case,
        but for those that came with features and have no slide.
    """
    looking = {e.slot: e for e in estimators if e.slot}
    for section in sections:
        for slot, estimator in looking.items():
            if encoder is not None and estimator.encoder == encoder.name:
                if facts(section).get("kind") != "features":
                    embedder(encoder, dense=estimator.dense).section(section, io.open_section_slide(section))
            elif slot not in section.obsm or slot not in facts(section).get(EMBEDDINGS, {}):
                embed(section, slot)


def fit(
    cohort: io.Cohort,
    *,
    model: str = "stflow",
    encoder: str | Encoder = "scatter",
    panel: int | Panel = 50,
    normalize: str = "library",
    min_counts: int = 0,
    seed: int = 0,
    weights: str | Path | None = None,
) -> models.Estimator:
    """Embed the references of a cohort, choose the panel from them, and fit.

    Parameters
    ----------
    cohort
        From `read_cohort`; its rows of role reference are fitted on.
    model
        Name of the estimator.
    encoder
        What it looks through: an encoder, or the name of one, as `pp.get_encoder` takes it.
    panel
        Number of genes, chosen by variance; or a fixed panel.
    normalize
        Scale: ``"library"``, log1p of counts per 10,000; ``"none"``, log1p of raw counts.
    min_counts
        Spots with fewer counts in all are left out.
    seed
        Of the estimator.
    weights
        Weights of the encoder as a local file; None for where it finds them itself.

    Returns
    -------
    The fitted estimator.

    Raises
    ------
    OptionError
        If an option is not offered, or the cohort has no reference.
    """
    references = list(cohort.select(role="reference"))
    if not references:
        raise OptionError(f"cohort {cohort.name} has no reference section with counts; give one the role reference")
    io.check_species(references, panel.genes if isinstance(panel, Panel) else ())
    ready = _encoder(encoder, weights)
    estimator = models.from_name(model, encoder=ready.name, normalize=normalize, seed=seed)
    embed_for(references, [estimator], encoder=ready)
    kept = [keep_spots(section, min_counts=min_counts) for section in references]
    genes = panel if isinstance(panel, Panel) else choose_panel(kept, panel, normalize=estimator.normalize)
    return estimator.fit(references, panel=genes, min_counts=min_counts)


def predict_section(
    model: models.Estimator, section: AnnData, *, n_samples: int = 16, weights: str | Path | None = None
) -> AnnData:
    """Predict at the spots of a section, from its slide.

    Parameters
    ----------
    model
        A fitted estimator.
    section
        Its slide is opened and its spots are embedded, in place, as the training sections were; counts are not read.
    n_samples
        As in `Estimator.predict`.
    weights
        Weights of the model's encoder as a local file; None for where it finds them itself.

    Returns
    -------
    As `Estimator.predict`.
    """
    io.check_species([section], model.panel_.genes if model.panel_ else ())
    if model.encoder and facts(section).get("kind") != "features":
        make = embedder(model.encoder, dense=model.dense, made=model.embedding_, weights=weights)
        make.section(section, io.open_section_slide(section))
    return model.predict(section, n_samples=n_samples)


def predict_slide(
    model: models.Estimator, wsi: WSIData, *, n_samples: int = 16, weights: str | Path | None = None
) -> AnnData:
    """Predict on a grid over the tissue of a slide without counts, at the spot distance of the training sections.

    Parameters
    ----------
    model
        A fitted estimator that looks at images.
    wsi
        A slide from `open_wsi`.
    n_samples
        As in `Estimator.predict`.
    weights
        Weights of the model's encoder as a local file; None for where it finds them itself.

    Returns
    -------
    As `Estimator.predict`; also in ``wsi.tables["<method>_tiles"]``.

    Raises
    ------
    OptionError
        If the model looks at no image.
    """
    if model.encoder is None:
        raise OptionError(f"model {model.name} looks at no image and cannot predict a slide; use hest_fm or stflow")
    step_um = model.pitch_um_ if np.isfinite(model.pitch_um_) else _TILE_UM
    make = embedder(model.encoder, dense=model.dense, made=model.embedding_, weights=weights)
    tiles = make.tiles(wsi, step_um)
    predicted = model.predict(tiles, n_samples=n_samples)
    wsi.tables[f"{model.name}_tiles"] = predicted
    return predicted


def evaluate(
    cohort: io.Cohort,
    out: str | Path,
    *,
    estimators: Mapping[str, models.Estimator] | None = None,
    by: Any = "section",
    panel: int | Panel = 50,
    normalize: str = "library",
    min_counts: int = 0,
    seeds: Iterable[int] = (0,),
) -> pd.DataFrame:
    """Embed a cohort, score every model on what it has not seen, and draw the figures.

    Parameters
    ----------
    cohort
        From `read_cohort`; its rows of role query are left alone.
    out
        Folder of the table, predictions and figures; a later run takes up what is finished there.
    estimators
        By the name they have in the table; None for `bench.default_models`.
    by, panel, normalize, min_counts, seeds
        As in `bench.run`.

    Returns
    -------
    The long table of `bench.run`; also ``results.parquet`` in `out`, beside predictions and figures.
    """
    chosen = dict(bench.default_models() if estimators is None else estimators)
    counted = cohort.select(sections=[row.section for row in cohort.rows if row.role != "query"])
    bench.plan_folds(counted, by)  # refuses what cannot be split before minutes of embedding
    embed_for(counted, chosen.values())
    options = {"by": by, "panel": panel, "normalize": normalize, "min_counts": min_counts, "seeds": tuple(seeds)}
    table = bench.run(counted, models=chosen, out=out, **options)
    draw_evaluation(table, Path(out), counted)
    return table


def draw_evaluation(table: pd.DataFrame, out: Path, sections: Sequence[AnnData]) -> list[Path]:
    """Draw the figures of an evaluation: models, genes, and maps of every held-out section.

    Parameters
    ----------
    table
        From `bench.run`.
    out
        The folder that it wrote to; figures go to ``figures/`` in it.
    sections
        The sections of that run.

    Returns
    -------
    The files.
    """
    scores = bench.summary(table)
    of_r = scores[scores["metric"] == "pearson"]
    label = "; ".join(dict.fromkeys(table["shares"]))
    figures = [
        pl.save(
            pl.model_bars(of_r[["model", "fold", "value"]], title=f"held out: {label}"), out / "figures" / "models.png"
        )
    ]
    best = str(table["model"].iloc[-1])
    for (fold, section), part in table.groupby(["fold", "section"], sort=False):
        figures += _draw_section(part, out, str(fold), best, next(s for s in sections if section_name(s) == section))
    return figures


def _draw_section(part: pd.DataFrame, out: Path, fold: str, model: str, section: AnnData) -> list[Path]:
    """Maps, scatters and bars of one held-out section, as the last model of the table predicts it."""
    name, seed = section_name(section), int(part["seed"].min())
    own = part[(part["model"] == model) & (part["metric"] == "pearson") & (part["seed"] == seed)]
    if (own["error"] != "").any():
        return []
    predicted = bench.read_prediction(out, fold=fold, section=name, model=model, seed=seed)
    r = own.set_index("gene")["value"]
    genes = _spread_by_rank(r)
    shown = predicted[:, genes]
    pair = (np.asarray(shown.layers["measured"]), np.asarray(shown.X))
    scale = str(facts(predicted)["scale"])
    about: dict[str, Any] = {"genes": genes, "r": r[genes].tolist(), "scale_label": scale}
    spread = np.asarray(shown.layers[STD]) if STD in shown.layers else None
    maps = pl.measured_beside_predicted(
        *pair,
        xy_um=shown.obsm[SPATIAL_UM],
        thumbnail=slide_thumbnail(io.open_section_slide(section)),
        spread=spread,
        **about,
    )
    bars = pl.gene_bars(r, title=f"{name}, {model}: {part['shares'].iloc[0]}")
    folder = out / "figures"
    drawn = {"maps": maps, "scatter": pl.gene_scatter(*pair, **about), "genes": bars}
    return [pl.save(figure, folder / f"{name}-{kind}.png") for kind, figure in drawn.items()]


def _spread_by_rank(r: pd.Series) -> list[str]:
    """Genes from the best to the worst predicted, at even distances in rank: no picking of the good ones."""
    ranked = list(r.fillna(0.0).sort_values(ascending=False, kind="stable").index)
    places = np.linspace(0, len(ranked) - 1, min(_N_SHOWN, len(ranked))).round().astype(int)
    return [str(ranked[place]) for place in places]


def slide_thumbnail(wsi: WSIData) -> pl.Thumbnail:
    """Reduce an opened slide to a small image that knows its place in µm."""
    known = wsi.attrs[UNS]
    width, height = known["slide_size_px"]
    return pl.Thumbnail(thumbnail(wsi), (0.0, width * known["mpp_x"], 0.0, height * known["mpp_y"]))


def demo(out: str | Path, *, dataset: str = "toy", seed: int = 0) -> dict[str, Any]:
    """Tell the whole story: fit, score on a held-out section, load, predict a slide without counts if there is one.

    Parameters
    ----------
    out
        Folder of models, predictions, table and figures.
    dataset
        ``"toy"``, built in; ``"her2st"`` or ``"breast"``, public sections fetched on request, the last one held out.
    seed
        Of the toy cohort and of the estimators.

    Returns
    -------
    Where everything is, and the mean r of every model on the held-out section.

    Raises
    ------
    OptionError
        If the data set is not offered.
    ReadError
        If it cannot be fetched.
    """
    folder = Path(out)
    cohort = _demo_cohort(dataset, seed)
    estimators = dict(bench.default_models())
    estimators["stflow"] = models.STFlow(training=models.Training(**_DEMO_TRAINING), seed=seed)
    table = evaluate(cohort, folder, estimators=estimators, seeds=(seed,))
    saved = bench.model_path(folder, fold=str(table["fold"].iloc[0]), model="stflow", seed=seed)
    for query in cohort.queries:
        _draw_query(models.load(saved), query, folder)
    scores = bench.summary(table)
    of_r = scores[scores["metric"] == "pearson"].set_index("model")["value"]
    return {"out": str(folder), "model": str(saved), "figures": str(folder / "figures"), "mean_r": of_r.to_dict()}


def _demo_cohort(dataset: str, seed: int) -> io.Cohort:
    if dataset == "toy":
        return datasets.toy(seed=seed)
    if dataset not in ("her2st", "breast"):
        raise OptionError(f"dataset must be toy, her2st or breast, got {dataset!r}")
    rows = (datasets.her2st() if dataset == "her2st" else datasets.breast()).rows
    return io.Cohort([*rows[:-1], replace(rows[-1], role="held_out")], name=dataset)


def _draw_query(model: models.Estimator, query: io.Row, folder: Path) -> Path:
    """Predict a slide without counts, and draw some genes on its tissue."""
    wsi = io.open_wsi(str(query.slide), mpp=query.mpp)
    predicted = predict_slide(model, wsi)
    write_h5ad(predicted, folder / f"{query.section}.h5ad")
    genes = list(predicted.var_names[:_N_SHOWN])
    about: dict[str, Any] = {"genes": genes, "scale_label": str(facts(predicted)["scale"])}
    expression, xy_um = np.asarray(predicted[:, genes].X), predicted.obsm[SPATIAL_UM]
    of_query = pl.expression_map(expression, xy_um, thumbnail=slide_thumbnail(wsi), **about)
    return pl.save(of_query, folder / "figures" / f"{query.section}-predicted.png")


def write_h5ad(predicted: AnnData, path: str | Path) -> None:
    """Write a prediction, whole or not at all."""
    with atomic_path(path) as temporary:
        predicted.write_h5ad(temporary)

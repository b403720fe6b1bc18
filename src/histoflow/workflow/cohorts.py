"""The verbs of a cohort, from paths to models and predictions: embed, fit, predict. Thin: the work is below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from histoflow import io, models
from histoflow._errors import MissingSlotError, OptionError, WeightsError
from histoflow._keys import DENSE, EMBEDDINGS, Missing, facts, section_name
from histoflow.pp import DenseEmbedder, Embedder, Encoder, Panel, Recipe, choose_panel, get_encoder
from histoflow.pp.expression import keep_spots
from histoflow.pp.tiles import TILES, tile_um

if TYPE_CHECKING:
    from wsidata import WSIData

FEATURES = "features"
_TILE_UM = 112.0


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
    if dense:
        return superpixel_embedder(
            encoder, weights=weights, cache_dir=cache_dir, of_model=made is not None, device=device
        )
    ready = _encoder(encoder, weights, cache_dir, of_model=made is not None)
    if made is not None:
        ready = replace(ready, amp=bool(made.get("amp", False)))
        patch_um, context_um = (tuple(map(float, made[key])) for key in ("patch_um", "context_um"))
        recipe = Recipe(patch_um, context_um, float(made["grid_um"]), bool(made.get("standardize", True)))
    else:
        recipe = Recipe(context_um=()) if ready.name == "color" else Recipe()
    return Embedder(ready, recipe, cache_dir, batch_size, device)


def superpixel_embedder(
    encoder: str | Encoder,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    of_model: bool = False,
    device: str = "cpu",
) -> DenseEmbedder:
    """Make what describes places by their super-pixels; as `embedder` with `dense`.

    `of_model` says that the encoder is that of a fitted model.
    """
    return DenseEmbedder(_encoder(encoder, weights, cache_dir, of_model=of_model), cache_dir, device=device)


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
    sections: Iterable[AnnData],
    estimators: Iterable[models.Estimator | models.Auto],
    *,
    encoder: Encoder | None = None,
) -> None:
    """Embed sections by every encoder that these estimators look through; what is embedded already stays as it is.

    Where one of them is pretrained, and another learns from the same encoder, the other's recipe holds for both.

    Parameters
    ----------
    sections
        Embedded in place.
    estimators
        What is going to look at them.
    encoder
        An encoder at hand: for estimators that look through one of its name, sections are embedded by it in any case,
        but for those that came with features and have no slide.

    Raises
    ------
    MissingSlotError
        If a section came as patch features, and an estimator looks through something else.
    """
    pretrained_first = sorted(
        (one for one in _each(estimators) if one.slot), key=lambda one: one.embedding_recipe is None
    )
    looking = {str(one.slot): one for one in pretrained_first}
    makes: dict[str, Embedder | DenseEmbedder] = {}
    for section in sections:
        for slot, one in looking.items():
            at_hand = encoder is not None and one.encoder == encoder.name and one.learns
            of_file = facts(section).get("kind") == FEATURES
            if slot in section.obsm and slot in facts(section).get(EMBEDDINGS, {}) and (of_file or not at_hand):
                continue
            if of_file:
                raise MissingSlotError(
                    f"section {section_name(section)} came as patch features, without a slide from which {slot} "
                    f"could be made; leave out the models that look through {slot}"
                )
            if slot not in makes:
                by = encoder if encoder is not None and at_hand else str(one.encoder)
                makes[slot] = embedder(by, dense=one.dense, made=one.embedding_recipe)
            makes[slot].section(section, io.open_section_slide(section))


def _each(estimators: Iterable[models.Estimator | models.Auto]) -> list[models.Estimator]:
    """The estimators, and in place of a choice its candidates."""
    nested = ([*e.candidates.values()] if isinstance(e, models.Auto) else [e] for e in estimators)
    return [estimator for several in nested for estimator in several]


def fit(
    cohort: io.Cohort | AnnData | Sequence[AnnData],
    *,
    model: str = "stflow",
    encoder: str | Encoder = "scatter",
    panel: int | Panel = 50,
    normalize: str = "library",
    min_counts: int = 0,
    seed: int = 0,
    level: float | None = 0.9,
) -> models.Estimator:
    """Embed the references of a cohort, choose the panel from them, and fit.

    Parameters
    ----------
    cohort
        From `read_cohort`; its rows of role reference are fitted on. Or sections, or Visium AnnData that
        `section_from_anndata` takes.
    model
        Name of the estimator; ``"auto"`` for the one that predicts held-out parts of the references best.
    encoder
        What it looks through: an encoder, from `pp.get_encoder` where it needs a file of weights, or the name of one.
    panel
        Number of genes, chosen by variance; or a fixed panel.
    normalize
        Scale: ``"library"``, log1p of counts per 10,000; ``"none"``, log1p of raw counts.
    min_counts
        Spots with fewer counts in all are left out.
    seed
        Of the estimator.
    level
        Level of the intervals, see `models.Calibrated`; None for no intervals.

    Returns
    -------
    The fitted estimator.

    Raises
    ------
    OptionError
        If an option is not offered, the cohort has no reference, or the model is pretrained and learns nothing.
    """
    chosen: dict[str, Any] = {
        "panel": panel,
        "normalize": normalize,
        "min_counts": min_counts,
        "seed": seed,
        "level": level,
    }
    estimator, references, how = planned_fit(cohort, model=model, encoder=encoder, **chosen)
    return estimator.fit(references, **how)


def planned_fit(
    cohort: io.Cohort | AnnData | Sequence[AnnData],
    *,
    model: str = "stflow",
    encoder: str | Encoder = "scatter",
    panel: int | Panel = 50,
    normalize: str = "library",
    min_counts: int = 0,
    seed: int = 0,
    level: float | None = 0.9,
) -> tuple[models.Estimator | models.Auto, list[AnnData], dict[str, Any]]:
    """What `fit` fits: the estimator, embedded sections, and the other arguments of `Estimator.fit`."""
    if model == models.STPathZeroShot.name:
        raise OptionError("model stpath is pretrained: nothing is fitted; use histoflow predict --model stpath")
    references = _references(cohort)
    io.check_species(references, panel.genes if isinstance(panel, Panel) else ())
    name, ready = look_through(references, encoder, None)
    estimator = named(model, ready, encoder=name, normalize=normalize, seed=seed, level=level)
    embed_for(references, [estimator], encoder=ready)
    kept = [keep_spots(section, min_counts=min_counts) for section in references]
    genes = panel if isinstance(panel, Panel) else choose_panel(kept, panel, normalize=estimator.normalize)
    missing: Missing = getattr(cohort, "missing", "error")
    return estimator, references, {"panel": genes, "min_counts": min_counts, "missing": missing}


def chosen_encoder(encoder: str, weights: str | Path | None, *, amp: bool) -> str | Encoder:
    """The name of an encoder, or with `weights` or `amp` the encoder itself; `amp`: in bfloat16 where that is faster.

    Parameters
    ----------
    encoder, weights, amp
        As in `pp.get_encoder`.

    Raises
    ------
    OptionError, WeightsError
        As `pp.get_encoder`, with `amp`.
    """
    return get_encoder(encoder, weights=weights, amp=amp) if amp or weights else encoder


def named(name: str, ready: Encoder | None, **options: Any) -> models.Estimator | models.Auto:
    """Make what is called `name`, a choice where it is auto; `ready` is None for sections without slides."""
    if name == models.Auto.name:
        return models.auto(**options, looks_at_slides=ready is not None)
    return models.from_name(name, **options)


def _references(cohort: io.Cohort | AnnData | Sequence[AnnData]) -> list[AnnData]:
    if isinstance(cohort, io.Cohort):
        sections = list(cohort.select(role="reference"))
        if not sections:
            raise OptionError(f"cohort {cohort.name} has no reference section with counts; give one the role reference")
        return sections
    given = [cohort] if isinstance(cohort, AnnData) else list(cohort)
    if not given:
        raise OptionError("there is no section to fit on; give one or more with counts")
    return [section if facts(section) else io.section_from_anndata(section) for section in given]


def look_through(
    sections: Sequence[AnnData], encoder: str | Encoder, weights: str | Path | None
) -> tuple[str, Encoder | None]:
    """Slot of the embeddings, and the encoder that makes them; None where all sections came as patch features."""
    if all(facts(section).get("kind") == FEATURES for section in sections):
        return (encoder if isinstance(encoder, str) else encoder.name), None
    ready = _encoder(encoder, weights)
    return ready.name, ready


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
    return model.predict(embed_spots_for(model, section, weights), n_samples=n_samples)


def embed_row_for(
    model: models.Estimator,
    cohort: io.Cohort,
    section: str,
    *,
    at: str | None = None,
    weights: str | Path | None = None,
    device: str = "cpu",
) -> AnnData:
    """Embed what one row of a cohort is to be predicted at: its spots; or tiles, for a slide or where they are wanted.

    Parameters
    ----------
    model
        A fitted estimator.
    cohort
        From `read_cohort`.
    section
        Id of the row.
    at
        ``"tiles"`` for tiles where there are spots; None for spots where there are some.
    weights, device
        As in `embed_spots_for`.

    Returns
    -------
    As `embed_spots_for` and `embed_tiles_for`.
    """
    row = next(row for row in cohort.rows if row.section == section)
    how: dict[str, Any] = {"weights": weights, "device": device}
    if row.kind == "slide" or (at == "tiles" and row.counts is None and row.kind != FEATURES):
        return embed_tiles_for(model, io.open_wsi(str(row.slide), mpp=row.mpp), **how)
    read = cohort.select(sections=[section])[0]
    if at == "tiles":
        return embed_tiles_for(model, io.open_section_slide(read), **how)
    return embed_spots_for(model, read, **how)


def embed_spots_for(
    model: models.Estimator, section: AnnData, weights: str | Path | None = None, *, device: str = "cpu"
) -> AnnData:
    """Embed the spots of a section from its slide, in place, as a model needs them.

    Parameters
    ----------
    model
        A fitted estimator.
    section
        Features that were read from a file stay as they are.
    weights
        Weights of the model's encoder as a local file; None for where it finds them itself.
    device
        Where the encoder runs.

    Returns
    -------
    The same section.
    """
    io.check_species([section], model.panel_.genes if model.panel_ else ())
    if model.encoder and facts(section).get("kind") != FEATURES:
        make = embedder(model.encoder, dense=model.dense, made=model.embedding_, weights=weights, device=device)
        make.section(section, io.open_section_slide(section))
    return section


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
    predicted = model.predict(embed_tiles_for(model, wsi, weights), n_samples=n_samples)
    wsi.tables[f"{model.method}_tiles"] = predicted
    return predicted


def embed_tiles_for(
    model: models.Estimator, wsi: WSIData, weights: str | Path | None = None, *, device: str = "cpu"
) -> AnnData:
    """Lay tiles over the tissue of a slide, at the spot distance of the training sections, and embed them.

    Parameters
    ----------
    model
        A fitted estimator that looks at images; a pretrained one has no spot distance and gets tiles of 112 µm.
    wsi
        A slide from `open_wsi`.
    weights
        Weights of the model's encoder as a local file; None for where it finds them itself.
    device
        Where the encoder runs.

    Returns
    -------
    A section without genes, as from `Embedder.tiles`.

    Raises
    ------
    OptionError
        If the model looks at no image.
    """
    if model.encoder is None:
        raise OptionError(f"model {model.method} looks at no image and cannot predict a slide; use hest_fm or stflow")
    step_um = model.pitch_um_ if np.isfinite(model.pitch_um_) else _TILE_UM
    make = embedder(model.encoder, dense=model.dense, made=model.embedding_, weights=weights, device=device)
    return make.tiles(wsi, step_um)

"""What every estimator is: fit on sections, save one folder, predict sections that were never measured."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import pandas as pd
from anndata import AnnData

from histoflow._errors import (
    ModelFormatError,
    NotFittedError,
    OptionError,
    PanelMismatchError,
    WeightsError,
)
from histoflow._keys import DENSE, EMBEDDINGS, HELD_OUT_R, SPATIAL, SPATIAL_UM, STD, UNS, Missing, facts, section_name
from histoflow._progress import track
from histoflow.models.arrays import Arrays
from histoflow.models.parts import Drawer, MakeShelf, Part, Reach, Rows, n_at_once, parts_of
from histoflow.models.progress import Progress
from histoflow.models.spots import Floats, Measured, Spots, embedding_of, measured_of, spots_of
from histoflow.models.storage import MODEL_JSON, WEIGHTS, read_model, write_model
from histoflow.pp.expression import Panel, check_normalize, keep_spots, missing_genes

_UNFITTING = (KeyError, TypeError, ValueError, RuntimeError, WeightsError, AttributeError, IndexError, OverflowError)
_SCALES = {"library": "log1p of counts per 10,000", "none": "log1p of raw counts"}


class Estimator(ABC):
    """Predicts the expression of a panel from H&E.

    Constructors only store. Learned attributes end in an underscore: `panel_`, `embedding_` (how embeddings were made),
    `pitch_um_` (spot distance in training), `training_` (sections, spots, and what the fit chose and how).

    Parameters
    ----------
    encoder
        What describes the images; None for an estimator that looks at none.
    normalize
        Scale of the expression: ``"library"``, log1p of counts per 10,000; or ``"none"``, log1p of raw counts.
    seed
        The only source of randomness.
    """

    name: ClassVar[str]
    """What the estimator is called in options, tables and saved models."""
    learns: ClassVar[bool] = True
    """Whether `fit` needs training sections; a pretrained estimator takes any, or none."""
    embedding_recipe: Mapping[str, Any] | None = None
    """How its embeddings have to be made; None: the way of the training sections."""
    local_options: ClassVar[tuple[str, ...]] = ()
    """Options that name files of this machine: a saved model holds their content instead."""
    dense: bool = False
    """Whether it looks at the super-pixels of a spot, rather than at a patch around it."""

    def __init__(self, *, encoder: str | None = "scatter", normalize: str = "library", seed: int = 0) -> None:
        self.encoder = encoder
        self.normalize = check_normalize(normalize)
        self.seed = int(seed)
        self.panel_: Panel | None = None
        self.embedding_: dict[str, Any] | None = None
        self.pitch_um_ = float("nan")
        self.training_: dict[str, Any] = {}
        self._progress: Progress | None = None

    @property
    def method(self) -> str:
        """Name of what predicts: its own, or that of the estimator inside."""
        return self.name

    @property
    def inside(self) -> Estimator:
        """What predicts: itself, or of a calibrated estimator the one inside, fitted if that is."""
        return self

    @property
    def slot(self) -> str | None:
        """``obsm`` entry that it looks at: the encoder's, or that of its super-pixels; None for no image."""
        return f"{self.encoder}{DENSE}" if self.encoder and self.dense else self.encoder

    @final
    def fit(
        self,
        sections: Sequence[AnnData],
        *,
        panel: Panel | Sequence[str],
        min_counts: int = 0,
        missing: Missing = "error",
    ) -> Self:
        """Learn from sections that have both images and counts.

        Parameters
        ----------
        sections
            Training sections: X raw counts, embedded into `slot`. None are needed where the estimator is pretrained.
        panel
            Genes to predict, from `choose_panel` or as a list of names.
        min_counts
            Spots with fewer counts in all are left out, and counted in `training_`.
        missing
            A panel gene that a section's table lacks: ``"error"``, or ``"zero"`` for tables of one chemistry that were
            trimmed of genes without counts; `training_` says which genes of which sections.

        Returns
        -------
        The estimator itself.

        Raises
        ------
        PanelMismatchError
            If a gene of the panel is missing from a section, or there is no section.
        MissingSlotError, EncoderMismatchError
            If sections are not embedded, or not all in one way.
        """
        everything = list(sections)
        kept = [keep_spots(section, min_counts=min_counts) for section in everything]
        if self.learns and not sum(section.n_obs for section in kept):
            raise PanelMismatchError(
                f"no training spot is left of {len(everything)} sections at min_counts={min_counts}"
            )
        genes = panel if isinstance(panel, Panel) else Panel(tuple(panel))
        embedding = self._embedding(kept)
        measured = [
            measured_of(section, self.slot, genes, self.normalize, missing=missing) for section in kept if section.n_obs
        ]
        self.panel_, self.embedding_ = genes, embedding
        self.pitch_um_ = float(np.median([part.spots.pitch_um for part in measured])) if measured else float("nan")
        self.training_ = {
            "sections": [part.spots.section for part in measured],
            "n_spots": [len(part.spots) for part in measured],
            "min_counts": int(min_counts),
            "n_spots_left_out": int(sum(a.n_obs - b.n_obs for a, b in zip(everything, kept, strict=True))),
            "missing": missing,
            "taken_for_zero": {section_name(s): lacking for s in kept if (lacking := missing_genes(s, genes))},
        }
        self.training_ |= self._learn(kept, measured, missing)
        return self

    @final
    def predict(self, section: AnnData, *, n_samples: int = 16, return_samples: bool = False) -> AnnData:
        """Predict the expression of the panel; counts are never read.

        Parameters
        ----------
        section
            Spots or tiles, embedded the way the training sections were. It is not changed.
        n_samples
            Draws of an estimator that draws; others ignore it.
        return_samples
            Whether to keep the draws, in ``uns["histoflow"]["samples"]``, shape (n_samples, n_spots, n_genes), log1p.

        Returns
        -------
        New AnnData with the same ``obs_names`` and the panel as ``var_names``: X the mean of the draws, log1p on the
        model's scale, float32; ``layers["std"]`` their standard deviation where the estimator draws;
        ``var["held_out_r"]``, Pearson r of each gene in the cross-fit, where the model was cross-fitted;
        ``uns["histoflow"]`` with method, encoder, panel, scale, seed and versions. Of a pretrained estimator also
        ``var["gene_ids"]``, Ensembl ids.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        MissingSlotError, EncoderMismatchError
            If the section is not embedded, or another way than the training sections.
        """
        self._checked(n_samples)
        draws = self._draw(self._spots(section), n_samples)
        predicted = self._predicted(section, draws)
        predicted.uns[UNS] |= {"samples": draws} if return_samples else {}
        return predicted

    @final
    def predict_parts(
        self,
        section: AnnData,
        *,
        n_samples: int = 16,
        n_places: int | None = None,
        shelf: MakeShelf = np.empty,
    ) -> tuple[AnnData, Iterator[tuple[Rows, AnnData]]]:
        """Predict a section part by part, to the same numbers as `predict`, with bounded memory.

        Parameters
        ----------
        section
            As in `predict`; embeddings may be memory-mapped, and are read part by part.
        n_samples
            As in `predict`.
        n_places
            Most places of a part; None for as many as make some 10⁸ numbers.
        shelf
            Makes a float32 array of a shape, for the noise of all places where the estimator draws: in memory, unless
            told otherwise.

        Returns
        -------
        A prediction without its numbers, for the whole section; and rows of the section (n_rows,), ascending, with
        their prediction, for every part.

        Raises
        ------
        NotFittedError, MissingSlotError, EncoderMismatchError
            As in `predict`.
        OptionError
            If the estimator looks at a section as a whole, see `in_parts`.
        """
        self._checked(n_samples)
        reach = self._reach()
        if reach is None:
            raise OptionError(f"{self.method} looks at a section as a whole, not in parts; use predict")
        places = spots_of(section, None)
        draw = self._drawer(places, n_samples, shelf)
        frame = self._frame(section, draw.n_draws)
        parts = list(parts_of(places, reach, n_places or n_at_once(frame.n_vars, draw.n_draws)))
        return frame, ((part.own, self._part(section, part, draw)) for part in track(parts, "parts"))

    @property
    def in_parts(self) -> bool:
        """Whether a section can be predicted part by part, see `predict_parts`."""
        return self._reach() is not None

    @final
    def _part(self, section: AnnData, part: Part, draw: Drawer) -> AnnData:
        own = section[part.own]
        around = own if part.around is part.own else section[part.around]
        return self._predicted(own, draw.at(self._spots(around), part))

    @final
    def _checked(self, n_samples: int) -> None:
        self._fitted()
        if n_samples < 1:
            raise OptionError(f"n_samples is {n_samples}; give at least 1")

    @final
    def _predicted(self, section: AnnData, draws: Floats) -> AnnData:
        """A prediction of draws (n_draws, n_spots, n_genes), log1p."""
        predicted = self._frame(section, len(draws))
        predicted.X = _mean(draws)
        if len(draws) > 1:
            predicted.layers[STD] = draws.std(axis=0, dtype=np.float64, ddof=1).astype(np.float32)
        return self._completed(predicted, section)

    @final
    def _frame(self, section: AnnData, n_draws: int) -> AnnData:
        """A prediction without its numbers: names, places, facts."""
        panel = self._fitted()
        genes = pd.DataFrame(self._gene_columns(), index=pd.Index(panel.genes, dtype=object))
        if HELD_OUT_R in self.training_:
            genes[HELD_OUT_R] = [self.training_[HELD_OUT_R][gene] for gene in panel.genes]
        frame = AnnData(obs=section.obs.copy(), var=genes)
        for key in (SPATIAL, SPATIAL_UM):
            if key in section.obsm:
                frame.obsm[key] = np.array(section.obsm[key])
        frame.uns[UNS] = self._facts(section, n_draws)
        return frame

    @final
    def save(self, path: str | Path) -> None:
        """Write the model as a folder of ``model.json`` and ``weights.safetensors``, whole or not at all.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        OutputError
            If the folder cannot be written.
        """
        panel = self._fitted()
        described = {
            "estimator": self.name,
            "options": self.options() | dict.fromkeys(self.local_options),
            "panel": {"genes": list(panel.genes), "rule": panel.rule, "hash": panel.hash},
            "scale": _SCALES[self.normalize],
            "embedding": self.embedding_,
            "pitch_um": None if np.isnan(self.pitch_um_) else self.pitch_um_,
            "training": self.training_,
            "versions": _versions(),
        }
        write_model(path, described, self._state())

    def options(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON holds them."""
        names = list(inspect.signature(type(self)).parameters)
        values = {name: getattr(self, name) for name in names}
        return {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}  # type: ignore[arg-type]

    def identity(self) -> dict[str, Any]:
        """Everything that a fit depends on beside its data: the options, with the content of files for their names."""
        return self.options()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make an estimator, not fitted, of what `options` returned."""
        return cls(**options)

    def clone(self, **changes: Any) -> Self:
        """Make an estimator, not fitted, with the same options except for `changes`."""
        made = self.from_options(self.options() | changes)
        made._progress = self._progress
        return made

    def with_progress(self, progress: Progress) -> Self:
        """Make an estimator, not fitted, whose fit is taken up where it was when a process was killed.

        Networks keep after every epoch how far they are, and are trained on from there to the same bits; what fits in
        closed form is fitted anew. Only `fit` with the data of before takes anything up.

        Parameters
        ----------
        progress
            Where it is kept, such as a `workflow.ProgressFolder`.
        """
        made = self.clone()
        made._progress = progress
        return made

    @final
    def _fitted(self) -> Panel:
        if self.panel_ is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted; call fit first, or hf.models.load")
        return self.panel_

    def _embedding(self, sections: Sequence[AnnData]) -> dict[str, Any] | None:
        """How embeddings are to be made, from training sections that are all embedded so; None where none are used."""
        return embedding_of(sections, self.slot) if self.slot else None

    def _spots(self, section: AnnData) -> Spots:
        """What `_draw` sees of a section, refused where it is embedded another way."""
        return spots_of(section, self.slot, self.embedding_)

    def _gene_columns(self) -> dict[str, Sequence[str]]:
        """Columns of ``var`` in a prediction, each with a value for every gene of the panel."""
        return {}

    def _facts(self, section: AnnData, n_draws: int) -> dict[str, Any]:
        panel = self._fitted()
        kept = {key: value for key, value in facts(section).items() if key not in (EMBEDDINGS, "versions")}
        return kept | {
            "method": self.name,
            "embedding": self.embedding_ or {},
            "panel": list(panel.genes),
            "panel_rule": panel.rule,
            "panel_hash": panel.hash,
            "normalize": self.normalize,
            "scale": _SCALES[self.normalize],
            "seed": self.seed,
            "n_samples": n_draws,
            "trained_on": list(self.training_.get("sections", [])),
            "versions": _versions(),
        }

    def _learn(self, sections: Sequence[AnnData], measured: list[Measured], missing: Missing) -> dict[str, Any]:
        """Learn from training sections, and what was taken from them; an estimator needs the latter alone."""
        return self._fit(measured)

    def _completed(self, predicted: AnnData, section: AnnData) -> AnnData:
        """Give a prediction what is more than expression and its spread."""
        return predicted

    def _reach(self) -> Reach | None:
        """How far around a place its prediction looks; None where it looks at the section as a whole."""
        return None

    def _drawer(self, places: Spots, n_samples: int, shelf: MakeShelf) -> Drawer:
        """What draws parts of a section; `places` are all of it, without embeddings."""
        return Drawer(1, lambda around, _: self._draw(around, n_samples))

    def _held_out(self) -> Floats | None:
        """Predictions of the training spots that `_fit` made without having learned from them, (n_spots, n_genes).

        None of an estimator that makes none.
        """
        return None

    @abstractmethod
    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        """Learn; return what was chosen and how, as JSON holds it."""

    @abstractmethod
    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        """Draw log1p expression, (n_draws, n_spots, n_genes); one draw where the estimator is deterministic."""

    @abstractmethod
    def _state(self) -> Arrays:
        """Return everything learned, as named arrays."""

    @abstractmethod
    def _restore(self, arrays: Arrays) -> None:
        """Take back what `_state` returned."""


def load_estimator(path: str | Path, kinds: Mapping[str, type[Estimator]]) -> Estimator:
    """Read a folder that `Estimator.save` wrote.

    Parameters
    ----------
    path
        The folder.
    kinds
        Estimators by name.

    Raises
    ------
    ReadError
        If the folder or a file in it is missing.
    ModelFormatError
        If it is damaged or changed, of an unknown estimator, or written by a newer version.
    """
    described, arrays = read_model(path, kinds)
    try:
        return _rebuilt(kinds[described["estimator"]], described, arrays)
    except _UNFITTING as err:
        raise ModelFormatError(f"model {path}: {MODEL_JSON} and {WEIGHTS} do not fit together ({err})") from err


def _rebuilt(kind: type[Estimator], described: dict[str, Any], arrays: Arrays) -> Estimator:
    model = kind.from_options(described["options"])
    model.panel_ = Panel(tuple(described["panel"]["genes"]), described["panel"]["rule"])
    model.embedding_ = described["embedding"]
    model.pitch_um_ = float("nan") if described["pitch_um"] is None else float(described["pitch_um"])
    model.training_ = described["training"]
    model._restore(arrays)
    return model


def _mean(draws: Floats) -> Floats:
    """Mean over draws (n_draws, n_spots, n_genes); of one draw itself, which may be of every gene and is not copied."""
    mean: Floats = draws[0] if len(draws) == 1 else draws.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("histoflow", "torch", "numpy", "scikit-learn")}

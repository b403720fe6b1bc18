"""STPathZeroShot: published weights, which the user brings, on a slide that nothing is fitted on ("stpath")."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, final

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from histoflow._errors import (
    CountsError,
    EncoderMismatchError,
    NotFittedError,
    OptionError,
    PanelMismatchError,
    WeightsError,
)
from histoflow._files import file_hash
from histoflow._keys import EMBEDDINGS, facts, section_name
from histoflow.models.arrays import Arrays
from histoflow.models.base import Estimator
from histoflow.models.spots import Floats, Measured, Spots, spots_of
from histoflow.models.stpath_network import N_FEATURES, Context, Network, network_of, rescaled
from histoflow.models.stpath_vocabulary import (
    ORGANS,
    TECHS,
    VOCABULARY_FILE,
    GeneVocabulary,
    check_organ,
    check_tech,
    token_of,
)
from histoflow.pp.encoders.weights import read_state, weights_file
from histoflow.pp.expression import Panel
from histoflow.pp.raw import raw_field

_log = logging.getLogger(__name__)

PATCH_UM = 112.0
"""Side of the patches that GigaPath saw when STPath was trained: 224 pixels of 0.5 µm."""
LICENCE = (
    "none stated for the public weights (stfm.pth of huggingface.co/tlhuang/STPath): all rights are their authors'"
)

_ENCODER = "gigapath"
_VOCABULARY = "vocabulary"
_WHERE = (
    "it is not part of histoflow and is never downloaded by it. The authors' file is stfm.pth of "
    "huggingface.co/tlhuang/STPath, which states no licence; give yours with weights=, --weights on the command line"
)


class _Ready(NamedTuple):
    """What runs: the network, its head cut down to the panel, and the genes that its columns stand for."""

    network: Network
    vocabulary: GeneVocabulary


@final
class STPathZeroShot(Estimator):
    """STPath (Huang et al., npj Digital Medicine 2025): a pretrained transformer over all spots of a section.

    Nothing is learned here: `fit` reads weights and vocabulary, checks every gene of the panel, and takes training
    sections only to check that they are embedded rightly. Embeddings are GigaPath's own 1536 numbers of patches of
    112 µm: from `embed`, whose standardisation is undone where there is one, or from files by `read_features`.
    Every spot looks at all others of its section, so a prediction depends on which spots are predicted together.

    Expression is log1p of raw counts, as the network gives it: a little below 0 where it wants to say none.

    Where this differs from the published code: an organ or technology that is not in the list is an error, where that
    code takes padding; ``"Others"`` is the token of that name, where it takes padding for it; ``"Ovary"`` is the
    token of that name however it is written, where it reads the word with a capital as "Others". ``"unstated"`` is the
    padding token, which it takes when no organ is given. Several organs that it reads as "Others", such as bladder,
    cervix and lymph node, are to be given as ``"Others"``.

    Parameters
    ----------
    weights
        The weights, a state dict saved by torch or a safetensors file; nothing pickled in it is run.
    vocabulary
        The JSON file of gene symbols and Ensembl ids that belongs to them; None for ``symbol2ensembl.json`` beside the
        weights.
    organ
        Where the tissue is from: a word of the list, or ``"unstated"``. It has to be said before `fit`.
    tech
        Which technology to predict the counts of: ``"Spatial Transcriptomics"``, ``"Visium"``, ``"Xenium"``,
        ``"Visium HD"``, or ``"unstated"``.
    encoder
        ``obsm`` slot of GigaPath's embeddings.
    normalize
        ``"none"``, log1p of raw counts: the only scale that the weights know.
    device
        Where the network runs.
    seed
        As in `Estimator`; nothing here is random.

    Raises
    ------
    OptionError
        If organ or technology are not in the lists (with the nearest word), or another scale is asked for.
    """

    name: ClassVar[str] = "stpath"
    learns: ClassVar[bool] = False
    embedding_recipe: Mapping[str, Any] | None = {
        "patch_um": [PATCH_UM],
        "context_um": [],
        "grid_um": PATCH_UM,
        "standardize": False,
    }
    local_options: ClassVar[tuple[str, ...]] = ("weights", "vocabulary")

    def __init__(
        self,
        weights: str | Path | None = None,
        vocabulary: str | Path | None = None,
        *,
        organ: str | None = None,
        tech: str = "Visium",
        encoder: str = _ENCODER,
        normalize: str = "none",
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(encoder=encoder, normalize=normalize, seed=seed)
        if self.normalize != "none":
            raise OptionError(
                f"stpath predicts log1p of raw counts, but normalize is {normalize!r}; give normalize='none' "
                "(--normalize none), for every model that is compared with it"
            )
        self.weights = None if weights is None else str(weights)
        self.vocabulary = None if vocabulary is None else str(vocabulary)
        self.organ = None if organ is None else check_organ(organ)
        self.tech = check_tech(tech)
        self.device = device
        self._ready: _Ready | None = None

    def check(self) -> None:
        """Refuse what `fit` would refuse before it looks at any gene or section.

        Raises
        ------
        OptionError
            If no organ is given.
        WeightsError
            If there are no weights, or no vocabulary.
        """
        if self.organ is None:
            raise OptionError(
                f'stpath needs the organ; give organ= (--organ), one of {", ".join(ORGANS[3:])}, or "unstated"'
            )
        self._weights()
        self._vocabulary()

    def all_genes(self) -> Panel:
        """Every gene of the vocabulary, by Ensembl id, in the order of the columns.

        Raises
        ------
        WeightsError
            If there is no vocabulary.
        """
        return Panel(self._vocabulary().genes, "all")

    def identity(self) -> dict[str, Any]:
        """As `Estimator.identity`; WeightsError if a file is missing."""
        named = {"weights": self._weights(), "vocabulary": self._vocabulary_path()}
        return self.options() | {name: file_hash(path) for name, path in named.items()}

    def predict_given_spots(self, section: AnnData, measured: AnnData) -> AnnData:
        """Predict with some spots of the section measured: their counts are context for all others.

        Parameters
        ----------
        section
            As in `predict`; its own counts are not read.
        measured
            Some of its spots, by ``obs_names``: X raw counts, genes by symbol or Ensembl id.

        Returns
        -------
        As `predict`; ``obs["is_context"]`` marks the spots that were given, which are not to be scored.

        Raises
        ------
        OptionError
            If a spot is not one of the section's, or comes twice.
        CountsError
            If X is not raw counts.
        PanelMismatchError
            If the vocabulary knows none of the genes.
        """
        ready, spots = self._running(), self._spots(section)
        rows = section.obs_names.get_indexer(measured.obs_names)
        if not len(rows) or (rows < 0).any() or len(set(rows)) < len(rows):
            raise OptionError(
                f"{(rows < 0).sum()} of {len(rows)} measured spots are not of section {spots.section}; give some of "
                "its spots, each once, by their obs_names"
            )
        predicted = self._frame(section, 1)
        context = Context(rows, _tokens(measured, ready.vocabulary))
        predicted.X = ready.network.expression(self._encoded(spots, context))
        predicted.obs["is_context"] = np.isin(np.arange(section.n_obs), rows)
        return predicted

    def predict_streamed(self, section: AnnData, *, n_genes: int = 256) -> tuple[AnnData, Iterator[Floats]]:
        """As `predict`, for panels so large that spots × genes are not to be held at once.

        Parameters
        ----------
        section
            As in `predict`.
        n_genes
            Genes at a time.

        Returns
        -------
        The prediction without X; and X column by column, float32, each (n_spots, at most n_genes).

        Raises
        ------
        NotFittedError, MissingSlotError, EncoderMismatchError
            As `predict`.
        """
        if n_genes < 1:
            raise OptionError(f"n_genes is {n_genes}; give at least 1")
        network, encoded = self._running().network, self._encoded(self._spots(section))
        starts = range(0, len(self._fitted()), n_genes)
        columns = (network.expression(encoded, slice(start, start + n_genes)) for start in starts)
        return self._frame(section, 1), columns

    def _weights(self) -> Path:
        if self.weights is None:
            raise WeightsError(f"stpath needs the file of its weights; {_WHERE}")
        if not Path(self.weights).expanduser().exists():
            raise WeightsError(f"stpath's weights {self.weights} do not exist; {_WHERE}")
        return weights_file(self.weights)

    def _vocabulary_path(self) -> Path:
        return Path(self.vocabulary).expanduser() if self.vocabulary else self._weights().with_name(VOCABULARY_FILE)

    def _vocabulary(self) -> GeneVocabulary:
        return GeneVocabulary.read(self._vocabulary_path())

    def _running(self) -> _Ready:
        if self._ready is None:
            raise NotFittedError(f"{type(self).__name__} is not fitted; call fit first, or hf.models.load")
        return self._ready

    def _tell_licence(self) -> None:
        _log.warning("stpath: licence of the weights: %s; whether you may use them is yours to make sure", LICENCE)

    def _fit(self, measured: list[Measured]) -> dict[str, Any]:
        self._ready = None  # should anything be refused below, the genes of an earlier fit are not to pass for these
        self.check()
        path, vocabulary = self._weights(), self._vocabulary()
        tokens = vocabulary.tokens_of_panel(self._fitted().genes)
        network = network_of(read_state(path), f"weights {path}")
        vocabulary.check_width(network.n_outputs, str(path))
        self._tell_licence()
        self._ready = _Ready(network.keep_outputs(tokens).to(self.device), vocabulary)
        return {
            "sections": [],
            "n_spots": [],
            "weights_hash": file_hash(path),
            "weights_licence": LICENCE,
            "vocabulary_hash": vocabulary.hash,
        }

    def _embedding(self, sections: Sequence[AnnData]) -> dict[str, Any] | None:
        for section in sections:
            self._spots(section)
        return {"name": str(self.encoder), "n_features": N_FEATURES, **(self.embedding_recipe or {})}

    def _spots(self, section: AnnData) -> Spots:
        spots = spots_of(section, self.encoder)
        made = facts(section).get(EMBEDDINGS, {}).get(self.encoder, {})
        known = _ENCODER in str(made.get("name", "")).casefold()
        raw = raw_field(spots.embedding, made, patch_um=PATCH_UM, n_features=N_FEATURES) if known else None
        if raw is None:
            _refuse(spots, made)
        return replace(spots, embedding=raw)

    def _draw(self, spots: Spots, n_samples: int) -> Floats:
        return self._running().network.expression(self._encoded(spots))[None]

    def _encoded(self, spots: Spots, context: Context | None = None) -> torch.Tensor:
        organ, tech = token_of(str(self.organ), ORGANS), token_of(self.tech, TECHS)
        with torch.inference_mode():
            return self._running().network.encode(spots.embedding, rescaled(spots.xy_um), organ, tech, context)

    def _gene_columns(self) -> dict[str, Sequence[str]]:
        vocabulary = self._running().vocabulary
        return {"gene_ids": vocabulary.ensembl_of(self._fitted().genes)}

    def _facts(self, section: AnnData, n_draws: int) -> dict[str, Any]:
        known, made = super()._facts(section, n_draws), facts(section)[EMBEDDINGS][self.encoder]
        of_section = {name: str(made[name]) for name in ("version", "weights_hash", "licence") if name in made}
        told = ("weights_hash", "weights_licence", "vocabulary_hash")
        return known | {
            "embedding": {**known["embedding"], **of_section},
            "organ": str(self.organ),
            "tech": self.tech,
            **{name: self.training_[name] for name in told},
        }

    def _state(self) -> Arrays:
        ready = self._running()
        arrays = {name: value.cpu().numpy() for name, value in ready.network.state_dict().items()}
        return arrays | {_VOCABULARY: ready.vocabulary.as_array()}

    def _restore(self, arrays: Arrays) -> None:
        self._tell_licence()
        state = {name: torch.from_numpy(value) for name, value in arrays.items() if name != _VOCABULARY}
        network = network_of(state, "weights of the model")
        if network.n_outputs != len(self._fitted()):
            raise ValueError(f"{network.n_outputs} outputs for {len(self._fitted())} genes")
        self._ready = _Ready(network.to(self.device), GeneVocabulary.of_array(arrays[_VOCABULARY]))


def _refuse(spots: Spots, made: Mapping[str, Any]) -> NoReturn:
    sides, width = np.ravel(made.get("patch_um", [])).tolist(), spots.embedding.shape[1]
    raise EncoderMismatchError(
        f"section {spots.section} was embedded with {made.get('name', 'an encoder that it does not record')}, patch_um "
        f"{sides}, {width} numbers a spot, but stpath takes the {N_FEATURES} numbers of {_ENCODER} for patches of "
        f'{PATCH_UM:g} µm; hf.embed(section, "{_ENCODER}") makes them'
    )


def _tokens(measured: AnnData, vocabulary: GeneVocabulary) -> sparse.csr_matrix:
    """log1p of raw counts by token, (n_spots, n_tokens), float32; symbols of one gene are added up."""
    counts = sparse.csr_matrix(measured.X, dtype=np.float32)
    if (counts.data < 0).any() or (counts.data % 1).any():
        raise CountsError(f"X of the measured spots of section {section_name(measured)} is not raw counts; give these")
    tokens: NDArray[np.int64] = vocabulary.tokens(list(measured.var_names))
    if not (tokens >= 0).any():
        raise PanelMismatchError(
            f"STPath's vocabulary knows none of the {measured.n_vars} genes of the measured spots (such as "
            f"{measured.var_names[0]}); name them by human symbol or Ensembl id"
        )
    known = counts[:, tokens >= 0].tocoo()
    shape = (measured.n_obs, vocabulary.n_tokens)
    made = sparse.csr_matrix((known.data, (known.row, tokens[tokens >= 0][known.col])), shape=shape)
    made.data = np.log1p(made.data)
    return made

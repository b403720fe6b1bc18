"""STPath's words: organ and technology tokens, and the genes that its columns stand for.

The lists and their order are facts of the published weights (Huang et al., npj Digital Medicine, 2025): a row of an
embedding table, or a column of the gene head, has no other name than its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoflow._errors import OptionError, PanelMismatchError, ReadError, WeightsError
from histoflow._files import read_json, value_hash

TECHS = ("<pad>", "Spatial Transcriptomics", "Visium", "Xenium", "Visium HD")
ORGANS = (
    *("<pad>", "<mask>", "<unk>", "Spinal cord", "Brain", "Breast", "Bowel", "Skin", "Heart", "Kidney", "Prostate"),
    *("Lung", "Liver", "Uterus", "Bone", "Muscle", "Eye", "Pancreas", "Mouth", "Ovary", "Glioma", "Glioblastoma"),
    *("Stomach", "Colon", "Others"),
)
UNSTATED = "unstated"
"""The word for the padding token, which the published code takes wherever no word is given or known."""
MASK, FIRST_GENE = 1, 2
"""Tokens of a spot whose expression is not known, and of the first gene; 0 is padding."""
VOCABULARY_FILE = "symbol2ensembl.json"

_SHORT = {"st": "Spatial Transcriptomics"}
_N_TOLD = 5


def check_organ(organ: str) -> str:
    """The organ as the list writes it, else OptionError with the nearest word; case and hyphens do not matter."""
    return _word(organ, "organ", ORGANS, 'give "Others" for one that is not in the list')


def check_tech(tech: str) -> str:
    """The technology as the list writes it, else OptionError with the nearest word; case and hyphens do not matter."""
    return _word(tech, "tech", TECHS, f'give "{UNSTATED}" for one that is not in the list')


def token_of(word: str, words: Sequence[str]) -> int:
    """Place of a checked word in `ORGANS` or `TECHS`; that of padding for `UNSTATED`."""
    return 0 if word == UNSTATED else words.index(word)


def _word(given: str, option: str, words: Sequence[str], otherwise: str) -> str:
    offered = [word for word in words if not word.startswith("<")]
    known = {_letters(word): word for word in (*offered, UNSTATED)} | _SHORT
    found = known.get(_letters(given))
    if found is None:
        nearest = known[get_close_matches(_letters(given), known, n=1, cutoff=0.0)[0]]
        raise OptionError(
            f"{option} is {given!r}, which STPath has no token for; did you mean {nearest!r}? Choose one of "
            f"{', '.join(offered)}; {otherwise}"
        )
    return found


def _letters(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))


@dataclass(frozen=True)
class GeneVocabulary:
    """Which gene each column of the weights stands for.

    Parameters
    ----------
    ensembl
        Ensembl id by gene symbol; several symbols may name one gene. Columns are the sorted ids, after two tokens for
        padding and mask.
    """

    ensembl: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> GeneVocabulary:
        """Read a JSON file of symbols and Ensembl ids.

        Raises
        ------
        WeightsError
            If there is no such file, or it holds something else.
        """
        if not path.is_file():
            raise WeightsError(
                f"STPath's gene vocabulary {path} does not exist; it is the file {VOCABULARY_FILE} (gene symbol to "
                "Ensembl id) of the same release as the weights: put it beside them, or name it with vocabulary=, "
                "--vocabulary on the command line"
            )
        try:
            return cls.of(read_json(path), str(path))
        except ReadError as err:
            raise WeightsError(str(err)) from err

    @classmethod
    def of(cls, value: object, what: str) -> GeneVocabulary:
        """Take a mapping that was read from `what`, else WeightsError."""
        if not isinstance(value, dict) or not value or not all(isinstance(v, str) and v for v in value.values()):
            raise WeightsError(f"{what} is no gene vocabulary: wanted a JSON object of gene symbol to Ensembl id")
        return cls(value)

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Ensembl ids in the order of the columns, the first one at token `FIRST_GENE`."""
        return tuple(sorted(set(self.ensembl.values())))

    @cached_property
    def _token(self) -> dict[str, int]:
        return {gene: token for token, gene in enumerate(self.genes, FIRST_GENE)}

    @property
    def n_tokens(self) -> int:
        """How wide the weights have to be."""
        return len(self.genes) + FIRST_GENE

    @property
    def hash(self) -> str:
        """Hash of the ordered ids, 12 hex digits."""
        return value_hash(list(self.genes))[:12]

    def ensembl_of(self, names: Sequence[str]) -> list[str]:
        """Ensembl id of each gene, given by symbol or Ensembl id."""
        return [self.ensembl.get(name, name) for name in names]

    def tokens(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Token of each gene, given by symbol or Ensembl id, shape (n_genes,); -1 for one that is not there."""
        return np.array([self._token.get(gene, -1) for gene in self.ensembl_of(names)], dtype=np.int64)

    def tokens_of_panel(self, names: Sequence[str]) -> NDArray[np.int64]:
        """As `tokens`, of genes that must be there.

        Raises
        ------
        PanelMismatchError
            Naming those that are not, each with the nearest name.
        """
        tokens = self.tokens(names)
        unknown = [name for name, token in zip(names, tokens, strict=True) if token < 0]
        if unknown:
            told = ", ".join(f"{name} ({self._nearest(name)})" for name in unknown[:_N_TOLD])
            more = " …" if len(unknown) > _N_TOLD else ""
            raise PanelMismatchError(
                f"STPath's vocabulary lacks {len(unknown)} of the {len(names)} genes asked for: {told}{more}; name "
                "genes by symbol or Ensembl id, and leave out what the weights do not know"
            )
        return tokens

    def _nearest(self, name: str) -> str:
        by_capitals = {known.upper(): known for known in (*self.genes, *self.ensembl)}
        close = get_close_matches(name.upper(), by_capitals, n=1)
        return f"nearest: {by_capitals[close[0]]}" if close else "nothing near it"

    def check_width(self, n_tokens: int, weights: str) -> None:
        """Raise WeightsError unless the weights have a column for each gene, padding and mask."""
        if n_tokens != self.n_tokens:
            raise WeightsError(
                f"the gene vocabulary holds {len(self.genes)} Ensembl ids, which makes {self.n_tokens} tokens with "
                f"padding and mask, but weights {weights} have {n_tokens}: every column would be called by the name of "
                f"another gene; give the {VOCABULARY_FILE} of the same release"
            )

    def as_array(self) -> NDArray[np.uint8]:
        """The vocabulary as bytes of JSON, shape (n_bytes,), for a file of arrays."""
        return np.frombuffer(json.dumps(dict(self.ensembl)).encode(), dtype=np.uint8)

    @classmethod
    def of_array(cls, array: NDArray[np.uint8]) -> GeneVocabulary:
        """Take back what `as_array` returned."""
        return cls.of(json.loads(array.tobytes()), "the vocabulary of the model")

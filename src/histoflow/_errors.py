"""Everything histoflow raises, and warns of, on purpose.

HistoflowError
├── OptionError             (ValueError)   an argument has a value that is not offered
├── ReadError               (OSError)      a file is missing, truncated, or not what it should be
├── ManifestError           (ValueError)   a cohort manifest is empty, incomplete or has unknown columns
├── ResolutionError         (ValueError)   the scale of a slide is unknown, or its sources contradict
├── SlideMismatchError      (ValueError)   slide, spots and counts do not belong together
├── CountsError             (ValueError)   an expression matrix is not raw counts
├── MissingSlotError        (KeyError)     a section lacks a slot an operation needs
├── PanelMismatchError      (ValueError)   genes of the data and of the model differ
├── EncoderMismatchError    (ValueError)   embeddings were made another way than the model's
├── ShapeError              (ValueError)   an array has the wrong shape
├── NotFiniteError          (ValueError)   an array holds NaN or infinity
├── SplitError              (ValueError)   a split cannot be made, or would leak at the asked level
├── NotFittedError          (RuntimeError) an estimator is used before `fit`
├── ModelFormatError        (ValueError)   a model directory is damaged, or written by a newer version
├── ProtocolError           (ValueError)   an evaluation cannot be run again from this protocol, or on these data
├── WeightsError            (OSError)      weights of an encoder are missing or unreachable
├── OutputError             (OSError)      a result cannot be written where asked
├── ClusterError            (RuntimeError) a Dask scheduler or a queue cannot be used
└── MissingDependencyError  (ImportError)  an optional part is not installed

HistoflowWarning            (UserWarning)
├── ScaleWarning            a scale is usable but doubtful: anisotropic, up-sampled, taken from the hires image
├── DroppedSpotsWarning     spots were left out: no counts, no position, outside the image
├── GeneNamesWarning        gene names were repeated, have no other name, or are lacking and taken for zero
└── TrainingWarning         a fit used fewer data, or a cruder inner fold, than is advisable
"""

from __future__ import annotations


class HistoflowError(Exception):
    """Base of all errors raised by histoflow."""


class OptionError(HistoflowError, ValueError):
    """An argument has a value that is not offered."""


class ReadError(HistoflowError, OSError):
    """A file is missing, truncated, or not what it should be."""


class ManifestError(HistoflowError, ValueError):
    """A cohort manifest is empty, incomplete or has unknown columns."""


class ResolutionError(HistoflowError, ValueError):
    """The scale of a slide is unknown, or its sources contradict each other."""


class SlideMismatchError(HistoflowError, ValueError):
    """Slide, spots and counts do not belong together."""


class CountsError(HistoflowError, ValueError):
    """An expression matrix is not raw counts."""


class MissingSlotError(HistoflowError, KeyError):
    """A section lacks a slot an operation needs."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class PanelMismatchError(HistoflowError, ValueError):
    """Genes of the data and of the model differ."""


class EncoderMismatchError(HistoflowError, ValueError):
    """Embeddings were made another way than the model's."""


class ShapeError(HistoflowError, ValueError):
    """An array has the wrong shape."""


class NotFiniteError(HistoflowError, ValueError):
    """An array holds NaN or infinity."""


class SplitError(HistoflowError, ValueError):
    """A split cannot be made, or would leak at the asked level."""


class NotFittedError(HistoflowError, RuntimeError):
    """An estimator is used before `fit`."""


class ModelFormatError(HistoflowError, ValueError):
    """A model directory is damaged, or written by a newer version."""


class ProtocolError(HistoflowError, ValueError):
    """An evaluation cannot be run again from this protocol, or on these data."""


class WeightsError(HistoflowError, OSError):
    """Weights of an encoder are missing or unreachable."""


class OutputError(HistoflowError, OSError):
    """A result cannot be written where asked."""


class ClusterError(HistoflowError, RuntimeError):
    """A Dask scheduler or a queue cannot be used."""


class MissingDependencyError(HistoflowError, ImportError):
    """An optional part of histoflow is not installed."""


class HistoflowWarning(UserWarning):
    """Base of all warnings given by histoflow."""


class ScaleWarning(HistoflowWarning):
    """A scale is usable but doubtful."""


class DroppedSpotsWarning(HistoflowWarning):
    """Spots were left out, and why."""


class GeneNamesWarning(HistoflowWarning):
    """Gene names were repeated, have no name of the kind asked for, or are lacking and taken for zero."""


class TrainingWarning(HistoflowWarning):
    """A fit used fewer data, or a cruder inner fold, than is advisable."""

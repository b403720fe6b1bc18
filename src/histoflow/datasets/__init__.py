"""Data to try histoflow on: a toy cohort with planted truth, and public sections fetched on request."""

from histoflow.datasets.planted import ToyTruth, toy, toy_truth, write_toy
from histoflow.datasets.remote import breast, download_breast, her2st, load_breast

__all__ = ["ToyTruth", "breast", "download_breast", "her2st", "load_breast", "toy", "toy_truth", "write_toy"]

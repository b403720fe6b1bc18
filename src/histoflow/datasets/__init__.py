"""Data to try histoflow on: a toy cohort with planted truth."""

from histoflow.datasets.planted import ToyTruth, toy, toy_truth, write_toy

__all__ = ["ToyTruth", "toy", "toy_truth", "write_toy"]

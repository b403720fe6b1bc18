"""Spatial gene expression from ordinary H&E slides."""

from importlib.metadata import version as _version

__version__ = _version("histoflow")

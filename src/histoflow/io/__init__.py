"""Paths become objects here: slides with a known scale, sections, cohorts."""

from histoflow.io.arrays import check_counts
from histoflow.io.images import slide_id
from histoflow.io.manifest import Cohort, Row, read_cohort
from histoflow.io.scale import Scale
from histoflow.io.slides import open_section_slide, open_wsi
from histoflow.io.spaceranger import read_visium
from histoflow.io.spots import read_st, section_from_anndata

__all__ = [
    "Cohort",
    "Row",
    "Scale",
    "check_counts",
    "open_section_slide",
    "open_wsi",
    "read_cohort",
    "read_st",
    "read_visium",
    "section_from_anndata",
    "slide_id",
]

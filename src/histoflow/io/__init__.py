"""Paths become objects here: slides with a known scale, sections, cohorts."""

from histoflow.io.arrays import check_counts
from histoflow.io.features import read_features
from histoflow.io.genes import check_species, rename_genes, species_of
from histoflow.io.geojson import to_geojson
from histoflow.io.hdf5 import read_anndata
from histoflow.io.hest_bench import HestPatches, HestSample, HestTask, open_hest_patches, read_hest_bench
from histoflow.io.hest_section import PATCH_UM, hest_section
from histoflow.io.images import slide_id
from histoflow.io.manifest import Cohort, Row, read_cohort
from histoflow.io.polygons import read_polygons
from histoflow.io.scale import Scale
from histoflow.io.slides import open_section_slide, open_wsi
from histoflow.io.spaceranger import read_visium
from histoflow.io.spatialdata import from_spatialdata, to_spatialdata
from histoflow.io.spots import read_st, section_from_anndata
from histoflow.io.superpixels import SuperPixels
from histoflow.io.visium_hd import read_visium_hd

__all__ = [
    "PATCH_UM",
    "Cohort",
    "HestPatches",
    "HestSample",
    "HestTask",
    "Row",
    "Scale",
    "SuperPixels",
    "check_counts",
    "check_species",
    "from_spatialdata",
    "hest_section",
    "open_hest_patches",
    "open_section_slide",
    "open_wsi",
    "read_anndata",
    "read_cohort",
    "read_features",
    "read_hest_bench",
    "read_polygons",
    "read_st",
    "read_visium",
    "read_visium_hd",
    "rename_genes",
    "section_from_anndata",
    "slide_id",
    "species_of",
    "to_geojson",
    "to_spatialdata",
]

"""Any task over many slides: in this process, or on a Dask cluster; knows no slide, no model and no result."""

from histoflow.cohort.clusters import CLUSTERS, Where, job_script
from histoflow.cohort.running import Outcome, run

__all__ = ["CLUSTERS", "Outcome", "Where", "job_script", "run"]

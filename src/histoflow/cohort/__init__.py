"""Any task over many slides: in this process, or on a Dask cluster; knows no slide, no model and no result."""

from histoflow.cohort.clusters import CLUSTERS, Where, job_script
from histoflow.cohort.running import Outcome, Pool

__all__ = ["CLUSTERS", "Outcome", "Pool", "Where", "job_script"]

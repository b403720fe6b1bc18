"""The report: an evaluation or a prediction as one HTML page; tables and predictions in, text out."""

from histoflow.bench.report.evaluation import evaluation_page
from histoflow.bench.report.maps import Picture
from histoflow.bench.report.page import check_library
from histoflow.bench.report.prediction import prediction_page

__all__ = ["Picture", "check_library", "evaluation_page", "prediction_page"]

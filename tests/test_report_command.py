"""The report from paths: an evaluation with pictures of its tissue, a prediction on its slide, what is refused."""

import json
import re
from io import BytesIO
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image
from tests.test_cli import check_error, histoflow
from tests.test_workflow import PANEL, tiny_cohort

import histoflow as hf
from histoflow import bench, datasets, io, models, workflow
from histoflow._errors import ReadError
from histoflow._keys import UNS
from histoflow.io.tissue import on_tissue, tissue_mask
from histoflow.workflow.reports import read_pictures, tissue_picture


@pytest.fixture(scope="module")
def manifest(cache_folder):
    return tiny_cohort(cache_folder)


@pytest.fixture(scope="module")
def folder(manifest, tmp_path_factory):
    """An evaluation of two baselines, as the command leaves it, without its figures."""
    panel = tmp_path_factory.mktemp("panel") / "genes.txt"
    panel.write_text("\n".join(PANEL.genes))
    out = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow.evaluation, "_draw_section", lambda *_: [])
        done = histoflow("evaluate", manifest, "--out", out, "--panel", panel, "--models", "mean,color")
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def predicted(manifest, folder):
    """A prediction of the query slide, as the command leaves it."""
    path = folder / "P2_C.h5ad"
    model = bench.model_path(folder, fold="P2_B", model="color")
    done = histoflow("predict", model, manifest, "--section", "P2_C", "--out", path)
    assert done.code == 0, done.err
    return path


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="report-data">(.*?)</script>', text, flags=re.S).group(1))


def test_the_command_writes_an_evaluation_and_says_where(folder, tmp_path):
    out = tmp_path / "new" / "report.html"
    done = histoflow("report", folder, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"the report is in {out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser\n"
    text, data = data_of(out)
    oracle = "library_size (oracle: true totals)"
    assert [row["model"] for row in data["models"]] == ["color", "library_size", oracle, "mean", "location"]
    assert [section["name"] for section in data["sections"]] == ["P2_B"]
    assert data["sections"][0]["picture"] is not None
    assert str(folder) in text
    assert histoflow("report", folder, "--out", out, "--json").json == {"report": str(out), "bytes": out.stat().st_size}


def test_the_command_writes_a_prediction_on_its_slide(predicted, tmp_path):
    assert histoflow("report", predicted, "--out", tmp_path / "r.html").code == 0
    text, data = data_of(tmp_path / "r.html")
    (section,) = data["sections"]
    assert section["picture"] is not None
    assert section["measured"] is None
    assert section["xy"]["n"] == anndata.read_h5ad(predicted).n_obs
    assert "A prediction, not a measurement" in text


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"slide": "/gone/HE.tif"}, "/gone/HE.tif, is gone; restore it"),
        ({"slide_id": "another"}, "is not the file that section"),
    ],
)
def test_a_slide_that_is_gone_or_another_is_said(predicted, tmp_path, known, reason):
    made = anndata.read_h5ad(predicted)
    made.uns[UNS] |= known
    made.write_h5ad(tmp_path / "p.h5ad")
    assert workflow.report(tmp_path / "p.h5ad", tmp_path / "r.html") == tmp_path / "r.html"
    text, data = data_of(tmp_path / "r.html")
    assert data["sections"][0]["picture"] is None
    assert reason in text


def test_a_picture_shows_the_tissue_that_the_spots_lie_on(manifest, folder):
    section = io.read_cohort(manifest).select(sections=["P2_B"])[0]
    picture = read_pictures(folder)["P2_B"]
    image = np.asarray(Image.open(BytesIO(picture.jpeg)))
    assert max(image.shape) <= 1000
    left, right, top, bottom = picture.extent_um
    per_px = (right - left) / image.shape[1], (bottom - top) / image.shape[0]
    assert per_px[0] == pytest.approx(per_px[1], rel=0.05)
    here, best = on_tissue(tissue_mask(image), (section.obsm["spatial_um"] - [left, top]) / per_px)
    assert here > 0.95
    assert best - here < 0.05


def test_a_picture_is_of_the_part_with_spots_alone(manifest):
    wsi = io.open_wsi(io.read_cohort(manifest).queries[0].slide)
    width, height = np.array(wsi.attrs[UNS]["slide_size_px"]) * wsi.attrs[UNS]["mpp_x"]
    picture = tissue_picture(wsi, [[0.8 * width, 0.8 * height]])
    left, right, top, bottom = picture.extent_um
    step = (right - left) / Image.open(BytesIO(picture.jpeg)).width
    assert left == pytest.approx(max(0, 0.8 * width - 300), abs=2 * step)
    assert top == pytest.approx(max(0, 0.8 * height - 300), abs=2 * step)
    assert (right, bottom) == pytest.approx((width, height), abs=2 * step)


def test_what_is_neither_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    check_error(histoflow("report", tmp_path / "empty", "--out", tmp_path / "r.html"), 1, "holds no results.parquet")
    check_error(
        histoflow("report", tmp_path / "no.h5ad", "--out", tmp_path / "r.html"), 1, "is no prediction; give an h5ad"
    )
    (tmp_path / "bad.h5ad").write_bytes(b"nothing of the kind")
    check_error(histoflow("report", tmp_path / "bad.h5ad", "--out", tmp_path / "r.html"), 1, "is not a whole h5ad file")
    check_error(histoflow("report", folder, "--out", tmp_path / "r.pdf"), 2, "give a name that ends in .html")
    assert not (tmp_path / "r.html").exists()


def test_a_page_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    out = tmp_path / "r.html"
    out.write_text("before")

    def stopped(self, text, **_):
        self.write_bytes(text[:100].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        workflow.report(folder, out)
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_predictions_that_are_gone_are_said(folder, tmp_path, monkeypatch):
    def gone(*_, **__):
        raise ReadError("there is no prediction")

    monkeypatch.setattr(bench, "read_prediction", gone)
    hf.report(folder, tmp_path / "r.html")
    assert "There is no map of color on P2_B: there is no prediction." in data_of(tmp_path / "r.html")[0]


def test_the_demo_ends_with_reports(manifest, tmp_path, monkeypatch):
    cohort = io.read_cohort(manifest)
    monkeypatch.setattr(datasets, "toy", lambda seed: cohort)
    monkeypatch.setattr(bench, "default_models", lambda level: {"mean": models.MeanBaseline()})
    monkeypatch.setattr(models, "STFlow", lambda training, seed: models.ColorBaseline(seed=seed))
    monkeypatch.setattr(workflow.evaluation, "_draw_section", lambda *_: [])
    done = histoflow("demo", "--out", tmp_path)
    assert done.code == 0, done.err
    assert f"report of evaluation: {tmp_path / 'report.html'}\nreport of P2_C: {tmp_path / 'P2_C.html'}\n" in done.out
    assert (tmp_path / "report.html").is_file()
    assert "A prediction, not a measurement" in (tmp_path / "P2_C.html").read_text(encoding="utf-8")

"""The command line: exit codes, one clear line, JSON; every bad input refused before anything is written."""

import gzip
import io as text_io
import json
import shutil
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.io import conftest as files
from tests.test_workflow import PANEL, tiny_cohort

from histoflow import bench, cli, io, models, workflow
from histoflow._errors import ManifestError
from histoflow._files import write_json
from histoflow.datasets.formats import write_tiff
from histoflow.models.storage import sealed

make_outs, make_st = files.make_outs, files.make_st


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def told(self):
        """Standard error without warnings."""
        return [line for line in self.err.splitlines() if line and not line.startswith("warning: ")]


def histoflow(*arguments) -> Done:
    """Run a command in this process, as the installed script does."""
    out, err = text_io.StringIO(), text_io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["histoflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return Done(stopped.value.code, out.getvalue(), err.getvalue())


def check_error(done, code, text):
    """One line, the wanted one; no traceback, and nothing on standard output."""
    assert done.code == code
    assert len(done.told) == 1
    assert done.told[0].startswith("error: ")
    assert text in done.told[0]
    assert done.out == ""


def part_of(manifest, folder, sections) -> Path:
    """A manifest of some of the Visium rows, written into another folder."""
    rows = pd.read_csv(manifest, index_col="section").loc[sections, ["kind", "slide", "counts", "role"]]
    for column in ("slide", "counts"):
        rows[column] = [manifest.parent / cell for cell in rows[column]]
    rows.to_csv(folder / "part.csv")
    return folder / "part.csv"


@pytest.fixture(scope="session")
def manifest(cache_folder):
    return tiny_cohort(cache_folder)


@pytest.fixture(scope="module")
def panel_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("panel") / "genes.txt"
    path.write_text("\n".join(PANEL.genes) + "\n\n")
    return path


@pytest.fixture(scope="module")
def fitted(manifest, panel_file, tmp_path_factory):
    """A linear probe on colours, as the command leaves it, and what the command said."""
    folder = tmp_path_factory.mktemp("fitted") / "model"
    done = histoflow("fit", manifest, "--out", folder, "--model", "color", "--panel", panel_file, "--json")
    return folder, done


@pytest.fixture(scope="module")
def model(fitted):
    return fitted[0]


# fit


def test_fit_saves_a_model_and_says_of_what(fitted):
    folder, done = fitted
    assert done.code == 0
    assert done.json == {
        "model": str(folder),
        "sections": ["P1_A", "P1_B", "P2_A"],
        "n_spots": [56, 13, 56],
        "n_spots_left_out": 0,
    }
    model = models.load(folder)
    assert (model.method, model.panel_, model.seed) == ("color", PANEL, 0)


def test_options_of_fit_reach_the_model(manifest, tmp_path):
    options = ["--model", "mean", "--panel", "6", "--normalize", "none", "--min-counts", "2500", "--seed", "3"]
    done = histoflow("fit", manifest, "--out", tmp_path / "m", *options)
    assert done.code == 0
    assert done.out.startswith("fitted mean on ")
    assert done.out.endswith(f"left out); the model is in {tmp_path / 'm'}\n")
    model = models.load(tmp_path / "m")
    assert (len(model.panel_), model.normalize, model.seed) == (6, "none", 3)
    assert model.training_["min_counts"] == 2500
    assert model.training_["n_spots_left_out"] == 125 - sum(model.training_["n_spots"]) > 0
    assert (model.method, model.level) == ("mean", 0.9)


@pytest.mark.parametrize(("level", "kind"), [("off", models.ColorBaseline), ("0.5", models.Calibrated)])
def test_the_level_of_intervals_is_chosen(manifest, panel_file, tmp_path, level, kind):
    options = ["--model", "color", "--panel", panel_file, "--level", level]
    assert histoflow("fit", manifest, "--out", tmp_path / "m", *options).code == 0
    model = models.load(tmp_path / "m")
    assert isinstance(model, kind)
    assert getattr(model, "level", None) == (None if level == "off" else 0.5)


@pytest.mark.parametrize(
    ("command", "level"),
    [("fit", "2"), ("evaluate", "2"), ("fit", "0"), ("fit", "0.995"), ("fit", "nan"), ("fit", "wide")],
)
def test_a_level_that_is_none_is_refused(manifest, tmp_path, command, level):
    done = histoflow(command, manifest, "--out", tmp_path / "m", "--level", level)
    check_error(done, 2, f"--level {level}: give a part above 0 and up to 0.99, as 0.9, or off")
    assert not (tmp_path / "m").exists()


# predict


def test_predict_writes_a_slide_on_a_grid(manifest, model, tmp_path):
    done = histoflow("predict", model, manifest.parent / "P2_C" / "HE.tif", "--out", tmp_path / "p.h5ad", "--json")
    predicted = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert (done.code, done.json) == (
        0,
        {"prediction": str(tmp_path / "p.h5ad"), "n_spots": predicted.n_obs, "n_genes": len(PANEL)},
    )
    assert predicted.uns["histoflow"]["mpp_source"] == "metadata"
    assert predicted.uns["histoflow"]["level"] == 0.9
    assert {"tile_id", "tissue_id", "unfamiliar"} <= set(predicted.obs)
    assert (predicted.layers["lower"] <= predicted.layers["upper"]).all()
    assert "scale" in predicted.layers
    assert "residual_quantiles" in predicted.varm


def test_predict_takes_the_scale_of_a_plain_picture_from_the_option(manifest, model, tmp_path):
    slide = manifest.parent / "P1_B" / "HE.jpg"
    done = histoflow("predict", model, slide, "--out", tmp_path / "p.h5ad")
    check_error(done, 1, f"the scale of {slide} is unknown")
    assert "--mpp" in done.err
    assert not list(tmp_path.iterdir())
    done = histoflow("predict", model, slide, "--mpp", "1.1", "--out", tmp_path / "p.h5ad")
    predicted = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert done.code == 0
    assert done.out == f"predicted 5 genes at {predicted.n_obs} places; they are in {tmp_path / 'p.h5ad'}\n"
    assert predicted.uns["histoflow"]["mpp_x"] == 1.1


@pytest.mark.parametrize(
    ("options", "kind", "first"),
    [
        (["--section", "P2_B"], "visium", "-1"),
        (["--section", "P1_A", "--at", "spots"], "visium", "-1"),
        (["--section", "P1_B", "--at", "tiles"], "tiles", "tile_"),
        (["--section", "P2_C"], "tiles", "tile_"),
    ],
)
def test_predict_takes_a_row_of_a_cohort(manifest, model, tmp_path, options, kind, first):
    done = histoflow("predict", model, manifest, *options, "--out", tmp_path / "p.h5ad", "--json")
    assert done.code == 0
    predicted = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert predicted.uns["histoflow"]["kind"] == kind
    assert first in predicted.obs_names[0]
    assert predicted.n_obs == done.json["n_spots"]
    if kind != "tiles":
        section = io.read_cohort(manifest).select(sections=[options[1]])[0]
        np.testing.assert_array_equal(predicted.X, workflow.predict_section(models.load(model), section).X)


def test_predict_needs_no_section_where_there_is_one_unseen(manifest, model, tmp_path):
    two = part_of(manifest, tmp_path, ["P1_A", "P2_B"])
    done = histoflow("predict", model, two, "--out", tmp_path / "p.h5ad")
    assert done.code == 0
    assert anndata.read_h5ad(tmp_path / "p.h5ad").uns["histoflow"]["section"] == "P2_B"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "--section is not given and names 2 sections; choose one of P1_A, P1_B, P2_A, P2_B, P2_C"),
        (["--section", "P9"], "--section P9 names 0 sections; choose one of P1_A, P1_B"),
        (["--section", "P2_B", "--samples", "0"], "n_samples is 0; give at least 1"),
    ],
)
def test_predict_refuses_what_it_cannot_choose(manifest, model, tmp_path, options, text):
    check_error(histoflow("predict", model, manifest, *options, "--out", tmp_path / "p.h5ad"), 2, text)
    assert not list(tmp_path.iterdir())


# evaluate


def test_evaluate_prints_its_table_and_leaves_it(manifest, panel_file, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda table, out, _: drawn.append((len(table), out)))
    arguments = ["evaluate", manifest, "--out", tmp_path, "--panel", panel_file, "--models", "mean,color"]
    done = histoflow(*arguments, "--json")
    assert done.code == 0
    table = pd.read_parquet(tmp_path / "results.parquet")
    assert done.json["results"] == str(tmp_path / "results.parquet")
    scores = bench.summary(table).set_index(["model", "metric"])["value"]
    assert done.json["protocol"] == str(tmp_path / "protocol.json")
    assert list(done.json["mean"]) == [
        "library_size",
        "library_size (oracle: true totals)",
        "location",
        "mean",
        "color",
    ]
    told = {metric: value for metric, value in done.json["mean"]["color"].items() if value is not None}
    assert {"pearson", "share_of_ceiling", "svg_overlap"} <= set(told)
    for metric, value in told.items():
        assert value == pytest.approx(scores["color", metric])
    assert drawn == [(len(table), tmp_path)]
    said = histoflow(*arguments).out
    assert "held out: same patient, another block\n" in said
    assert f"{scores['color', 'pearson']:.3f}" in said
    assert "1 section, too few for an interval; r on P2_B:\n  library_size: " in said
    assert "genes without a defined r, counted as 0: mean all\n" in said
    assert "noise ceiling of r, an upper bound: 0." in said
    assert "not scored: location: location says nothing about section P2_B" in said
    assert said.endswith(f"table, protocol, predictions and figures are in {tmp_path}\n")


def test_options_of_evaluate_reach_the_runner(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
    options = ["--models", "mean", "--by", "block", "--normalize", "none", "--min-counts", "2000", "--seeds", "2"]
    assert histoflow("evaluate", manifest, "--out", tmp_path, "--panel", "4", *options).code == 0
    table = pd.read_parquet(tmp_path / "results.parquet")
    assert (set(table["by"]), set(table["seed"]), table["gene"].nunique()) == ({"block"}, {0, 1}, 4 + 1)
    assert table.attrs["normalize"] == "none"
    assert table.attrs["n_spots_left_out"] > 0


def test_evaluate_refuses_a_split_that_leaks(manifest, tmp_path):
    done = histoflow("evaluate", manifest, "--out", tmp_path / "o", "--models", "mean", "--by", "patient")
    check_error(done, 1, "the sections held out cannot be split from the references by patient: shared by both sides")
    assert not (tmp_path / "o").exists()


def renamed_patient(manifest, folder, *, slide=None, patient="P9"):
    """A manifest in which a section comes again as another patient's, from a slide of other bytes if there is one."""
    rows = pd.read_csv(manifest).set_index("section").loc[["P1_A", "P2_A"], ["patient", "kind", "slide", "counts"]]
    for column in ("slide", "counts"):
        rows[column] = [str(manifest.parent / cell) for cell in rows[column]]
    rows.loc["P9_A"] = rows.loc["P1_A"]
    rows.loc["P9_A", "patient"] = patient
    if slide is not None:
        rows.loc["P9_A", "slide"] = slide
    rows.to_csv(folder / "renamed.csv")
    return folder / "renamed.csv"


def test_evaluate_finds_one_patient_under_two_names(manifest, tmp_path):
    saved_again = tmp_path / "again.tif"
    saved_again.write_bytes((manifest.parent / "P1_A" / "HE.tif").read_bytes() + b"\0")
    evaluate = ["--out", tmp_path / "o", "--models", "mean", "--panel", "4", "--by", "patient"]
    done = histoflow("evaluate", renamed_patient(manifest, tmp_path), *evaluate)
    check_error(done, 1, "sections P1_A and P9_A lie on one slide, and the patches of 56 spots held out share pixels")
    done = histoflow("evaluate", renamed_patient(manifest, tmp_path, slide=str(saved_again)), *evaluate)
    check_error(done, 1, "sections P1_A and P9_A have 56 equal rows of embeddings color: the same pixels twice; they")
    assert "said to be of patient 'P1' and 'P9'; give them one patient, or keep one of the two" in done.err
    done = histoflow("evaluate", renamed_patient(manifest, tmp_path, patient="patient 1"), *evaluate)
    check_error(done, 1, "sections P1_A and P9_A have the patient ids 'P1' and 'patient 1', which look like one")
    done = histoflow("evaluate", renamed_patient(manifest, tmp_path, patient=None), *evaluate)
    check_error(done, 1, "cannot split by patient: not stated for P9_A; fill the column 'patient'")
    assert not (tmp_path / "o").exists()


def test_evaluate_runs_a_protocol_again(manifest, panel_file, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
    monkeypatch.setattr(workflow.again, "draw_evaluation", lambda *_: None)
    asked = ["--panel", panel_file, "--models", "color", "--normalize", "none", "--min-counts", "2000", "--seeds", "2"]
    first = histoflow("evaluate", manifest, "--out", tmp_path / "first", *asked, "--json")
    protocol = tmp_path / "first" / "protocol.json"
    again = histoflow("evaluate", manifest, "--out", tmp_path / "again", "--protocol", protocol, "--json")
    assert (first.code, again.code) == (0, 0), again.err
    tables = [pd.read_parquet(tmp_path / folder / "results.parquet") for folder in ("first", "again")]
    pd.testing.assert_frame_equal(*tables)
    assert again.json["mean"] == first.json["mean"]
    beside = histoflow("evaluate", manifest, "--out", tmp_path / "o", "--protocol", protocol, "--by", "section")
    check_error(beside, 2, "--by: the protocol states it already; leave it out, or evaluate anew")
    told = json.loads(protocol.read_text())
    told["sections"]["P1_B"]["counts"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(told))
    other = histoflow("evaluate", manifest, "--out", tmp_path / "o", "--protocol", tmp_path / "other.json")
    check_error(
        other, 1, "the cohort is not the one of the protocol: section P1_B has other counts; give the same data"
    )
    assert not (tmp_path / "o").exists()


def test_evaluate_splits_by_area(manifest, panel_file, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
    one = part_of(manifest, tmp_path, ["P1_A"])
    split = ["evaluate", one, "--out", tmp_path / "out", "--panel", panel_file, "--models", "mean", "--by", "area"]
    split += ["--level", "off"]  # areas of a section this small hold nothing out
    assert histoflow(*split, "--json").code == 0
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert list(table["fold"].unique()) == [f"P1_A-area{number}" for number in (1, 2, 3, 4)]
    near = table[(table["model"] == "location") & (table["metric"] == "pearson")]
    assert (near["error"] == "").all()
    done = histoflow(*split, "--buffer-um", "10")
    check_error(done, 1, "buffer_um=10 is below 317 µm, the diagonal of the widest patch (224 µm)")
    done = histoflow("evaluate", manifest, "--out", tmp_path / "out", "--buffer-um", "500")
    check_error(done, 2, "--buffer-um is for --by area, not for --by section; leave it out")


def test_auto_says_what_it_chose_and_by_how_much(manifest, panel_file, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "AUTO_NAMES", ("mean", "color"))
    arguments = ["fit", manifest, "--model", "auto", "--panel", panel_file, "--out"]
    done = histoflow(*arguments, tmp_path / "model")
    assert done.code == 0, done.err
    told = models.load(tmp_path / "model").training_["auto"]
    chosen, other = told["rows"]
    assert done.out.startswith(
        f"auto chose {chosen['model']}: mean r {chosen['mean_r']:.3f} on 3 folds of whole sections"
    )
    assert f"ahead of {other['model']} by {told['ahead_by']:.3f}\nfitted {chosen['model']} on" in done.out
    assert histoflow(*arguments, tmp_path / "again", "--json").json["auto"] == told
    monkeypatch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
    scored = histoflow(
        "evaluate", manifest, "--out", tmp_path / "out", "--panel", panel_file, "--models", "auto", "--json"
    )
    assert scored.code == 0, scored.err
    assert {"auto", "mean", "library_size", "color", "location"} <= set(scored.json["mean"])


# encoders


def test_encoders_are_listed_by_pattern():
    everything = {e["name"]: e for e in histoflow("encoders", "--json").json["encoders"]}
    for ours in ("scatter", "color"):
        told = everything[ours]
        assert (told["licence"], told["gated"], told["usable"], told["why_not"]) == ("BSD-3-Clause", False, True, "")
        assert (told["n_features"] > 0, 0 < told["mpp"] < 10) == (True, True)
    assert [e["name"] for e in histoflow("encoders", "c*r", "--json").json["encoders"]] == ["color"]
    listed = histoflow("encoders", "*uni*").out.splitlines()
    assert {"uni", "uni2"} <= {line.split()[0] for line in listed}
    assert all("gated" in line and "CC-BY-NC-ND" in line for line in listed if line.startswith("uni"))
    assert histoflow("encoders", "nothing*").out.splitlines()[0] == "no encoder is called nothing*"


# exit codes and errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["--loud"],
        ["fit"],
        ["fit", "c.csv"],
        ["fit", "c.csv", "--out", "m", "--colour"],
        ["fit", "c.csv", "--out", "m", "--seed", "one"],
        ["predict", "model", "--out", "p.h5ad"],
        ["predict", "model", "slide.tif", "--out", "p.h5ad", "--mpp", "fine"],
        ["predict", "model", "slide.tif", "--out", "p.h5ad", "--at", "cells"],
        ["evaluate", "c.csv"],
        ["demo", "--dataset", "none"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = histoflow(*arguments)
    assert done.code == 2
    assert done.told[-1].startswith("Error: ")
    assert (done.out, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fit", "COHORT", "--out", "o", "--model", "magic"], "model is 'magic'; choose one of mean, library_size"),
        (["fit", "COHORT", "--out", "o", "--model", "hest_fm", "--encoder", "magic"], "encoder is 'magic'; choose one"),
        (
            ["fit", "COHORT", "--out", "o", "--model", "mean", "--panel", "none.txt"],
            "--panel none.txt is neither a nu",
        ),
        (["fit", "COHORT", "--out", "o", "--model", "mean", "--panel", "binary"], "--panel binary"),
        (["fit", "COHORT", "--out", "o", "--model", "mean", "--panel", "0"], "n_genes is 0; ask for at least 1 gene"),
        (["fit", "COHORT", "--out", "o", "--model", "mean", "--normalize", "log"], "normalize='log' is not offered"),
        (["predict", "MODEL", "SLIDE", "--out", "o", "--at", "spots"], "--at spots needs a cohort manifest"),
        (["predict", "MODEL", "SLIDE", "--out", "o", "--mpp", "500"], "must lie between 0.05 and 20, got 500.0"),
        (["evaluate", "COHORT", "--out", "o", "--models", "mean,magic"], "model is 'magic'; choose one of mean"),
        (["evaluate", "COHORT", "--out", "o", "--models", "mean", "--by", "organ"], "by must be one of section, block"),
        (["evaluate", "COHORT", "--out", "o", "--models", "mean", "--seeds", "0"], "4 models and 0 seeds"),
    ],
    ids=lambda value: " ".join(value[4:]) if isinstance(value, list) else "",
)
def test_a_wrong_value_exits_2_with_one_line(manifest, model, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    Path("binary").write_bytes(gzip.compress(b"no list of genes"))
    places = {"COHORT": manifest, "MODEL": model, "SLIDE": manifest.parent / "P2_C" / "HE.tif"}
    check_error(histoflow(*(places.get(a, a) for a in arguments)), 2, text)
    assert [path.name for path in tmp_path.iterdir()] == ["binary"]


def test_an_error_shows_its_traceback_only_when_asked(tmp_path):
    (tmp_path / "c.csv").write_text("")
    arguments = ["fit", tmp_path / "c.csv", "--out", tmp_path / "m"]
    check_error(histoflow(*arguments), 1, "c.csv is empty; its first line names columns")
    with pytest.raises(ManifestError, match="is empty"):
        histoflow("--debug", *arguments)


def test_an_unforeseen_error_is_one_line_too(manifest, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(workflow, "fit_to_folder", broken)
    check_error(histoflow("fit", manifest, "--out", tmp_path / "m"), 1, "RuntimeError: a fault of ours; run it again")


def test_an_interruption_exits_130_without_a_traceback(manifest, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "fit_to_folder", interrupted)
    done = histoflow("fit", manifest, "--out", tmp_path / "m")
    assert (done.code, "Traceback" in done.err) == (130, False)


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_an_output_of_another_kind_is_not_replaced(manifest, model, tmp_path, command):
    out = tmp_path / "out"
    if command == "fit":
        out.write_text("a file")
        done = histoflow("fit", manifest, "--out", out, "--model", "mean", "--panel", "3")
    else:
        out.mkdir()
        done = histoflow("predict", model, manifest, "--section", "P2_B", "--out", out)
    check_error(done, 1, str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made_is_named(manifest, model, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "p.h5ad"
    check_error(histoflow("predict", model, manifest, "--section", "P2_B", "--out", out), 1, f"cannot write {out}")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"]], ids=" ".join)
def test_asking_for_help_is_no_error(arguments):
    done = histoflow(*arguments)
    assert done.code == 0
    assert "histoflow" in done.out


# bad input: each case writes its files into a folder and returns the arguments


def visium(outs):
    return {"section": outs.folder.parent.name, "kind": "visium", "slide": outs.slide, "counts": outs.folder}


def st(tables):
    return {
        "section": tables.slide.stem,
        "kind": "st",
        "slide": tables.slide,
        "counts": tables.counts,
        "spots": tables.spots,
    }


def cohort(folder, *rows, name="cohort.csv"):
    pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder / name


def fit_on(folder, *rows, panel="1"):
    return ["fit", cohort(folder, *rows), "--model", "mean", "--panel", panel]


def no_common_id(make):
    outs = make.outs()
    table = outs.positions.assign(barcode=[f"OTHER{i}" for i in range(len(outs.positions))])
    files.write_positions(outs.folder / "spatial", table, "header")
    return fit_on(make.folder, visium(outs))


def unknown_scale(make):
    return ["predict", make.model, make.outs().slide]


def contradictory_scale(make):
    outs = make.outs()
    picture = np.asarray(Image.open(BytesIO(files.paint())).convert("RGB"))
    write_tiff(outs.slide.with_suffix(".tif"), picture, files.MPP * 1.2)
    return fit_on(make.folder, visium(outs) | {"slide": outs.slide.with_suffix(".tif")})


def all_spots_outside(make):
    outs = make.outs()
    table = outs.positions.assign(pxl_col_in_fullres=outs.positions["pxl_col_in_fullres"] + 5000)
    files.write_positions(outs.folder / "spatial", table, "header")
    return fit_on(make.folder, visium(outs))


def counts_with(value):
    def act(make):
        tables = make.st()
        values = tables.values.astype(float)
        values.iloc[4, 2] = value
        values.to_csv(tables.counts, sep="\t")
        return fit_on(make.folder, st(tables))

    return act


def gene_not_measured(make):
    (make.folder / "genes.txt").write_text("KRT8\nIGKC\n")
    return fit_on(make.folder, visium(make.outs()), st(make.st()), panel=make.folder / "genes.txt")


def another_version_of_the_encoder(make):
    older = make.folder / "model"
    shutil.copytree(make.model, older)
    described = json.loads((older / "model.json").read_text())
    described["embedding"] |= {"version": "0", "id": "0" * 12}
    write_json(older / "model.json", sealed(described, described["sha256"]["weights.safetensors"]))
    return ["predict", older, make.manifest, "--section", "P2_B"]


def patches_of_another_size(make):
    older = make.folder / "model"
    shutil.copytree(make.model, older)
    described = json.loads((older / "model.json").read_text())
    described["embedding"]["patch_px"] = 999
    described["embedding"]["id"] = "0" * 12
    write_json(older / "model.json", sealed(described, described["sha256"]["weights.safetensors"]))
    return ["predict", older, make.manifest, "--section", "P2_B"]


def truncated_counts(make):
    outs = make.outs()
    matrix = outs.folder / "filtered_feature_bc_matrix.h5"
    matrix.write_bytes(matrix.read_bytes()[:3000])
    return fit_on(make.folder, visium(outs))


def empty_manifest(make):
    (make.folder / "cohort.csv").write_text("")
    return ["evaluate", make.folder / "cohort.csv"]


def manifest_without_rows(make):
    (make.folder / "cohort.csv").write_text("section,kind,slide\n")
    return ["evaluate", make.folder / "cohort.csv"]


def unknown_column(make):
    return fit_on(make.folder, visium(make.outs()) | {"patiennt": "P1"})


def missing_files(make):
    return fit_on(make.folder, visium(make.outs()) | {"slide": "nowhere.tif"})


def damaged_slide(make):
    (make.folder / "slide.svs").write_bytes(b"no slide")
    return ["predict", make.model, make.folder / "slide.svs", "--mpp", "0.5"]


def damaged_model(make):
    shutil.copytree(make.model, make.folder / "model")
    (make.folder / "model" / "weights.safetensors").write_bytes(b"\x08")
    return ["predict", make.folder / "model", make.manifest, "--section", "P2_B"]


@dataclass(frozen=True)
class Make:
    """What the cases are made of."""

    folder: Path
    outs: object
    st: object
    model: Path
    manifest: Path


BAD = [
    (no_common_id, "section S1: counts and spots have no id in common (counts have "),
    (unknown_scale, "S1.png is unknown: neither its metadata nor a spot array tell it; give µm per pixel"),
    (contradictory_scale, "contradictory: its metadata say 4.8 (x) and 4.8 (y) µm per pixel, the pitch of its spot ar"),
    (all_spots_outside, "spots lie outside the slide of 800x720 pixels"),
    (counts_with(np.nan), "section T1 holds no raw counts: 1 values are NaN or infinite, first in gene C"),
    (counts_with(-1), "1 values are negative, first in gene C; give the raw counts"),
    (counts_with(0.5), "1 values are not whole numbers, first in gene C; give the raw counts"),
    (gene_not_measured, "section T1 lacks 2 of the panel's 2 genes (KRT8, IGKC)"),
    (another_version_of_the_encoder, "section P2_B was embedded with version 2, but the model with version 0"),
    (patches_of_another_size, "but the model with patch_px 999; embed the section anew the same way"),
    (truncated_counts, "filtered_feature_bc_matrix.h5 is not a whole 10x count matrix"),
    (empty_manifest, "cohort.csv is empty; its first line names columns of section, kind"),
    (manifest_without_rows, "cohort.csv has no rows; write one per section"),
    (unknown_column, "unknown column 'patiennt'; did you mean 'patient'?"),
    (missing_files, "names files that do not exist: S1 slide"),
    (damaged_slide, "it is damaged, or no installed reader knows it"),
    (damaged_model, "weights.safetensors is damaged, or changed since"),
]


@pytest.mark.parametrize(("case", "text"), BAD, ids=lambda v: getattr(v, "__name__", ""))
def test_bad_input_is_one_clear_error_and_no_file(make_outs, make_st, model, manifest, tmp_path, case, text):
    arguments = case(Make(tmp_path, make_outs, make_st, model, manifest))
    before = set(tmp_path.rglob("*"))
    check_error(histoflow(*arguments, "--out", tmp_path / "result"), 1, text)
    assert set(tmp_path.rglob("*")) == before


def test_a_failure_leaves_an_earlier_result_alone(make_outs, make_st, model, manifest, tmp_path):
    arguments = truncated_counts(Make(tmp_path, make_outs, make_st, model, manifest))
    shutil.copytree(model, tmp_path / "result")
    check_error(histoflow(*arguments, "--out", tmp_path / "result"), 1, "not a whole 10x count matrix")
    assert models.load(tmp_path / "result").panel_ == PANEL


def test_spots_outside_the_image_are_counted_told_and_left_out(make_outs, tmp_path):
    outs = make_outs()
    table = outs.positions.assign(pxl_col_in_fullres=outs.positions["pxl_col_in_fullres"] + 300)
    files.write_positions(outs.folder / "spatial", table, "header")
    Image.fromarray(np.roll(np.asarray(Image.open(outs.slide)), 300, axis=1)).save(outs.slide)
    inside = table[(table["in_tissue"] == 1) & (table["pxl_col_in_fullres"] < files.SIZE[0])]
    done = histoflow(*fit_on(tmp_path, visium(outs)), "--out", tmp_path / "model", "--json")
    assert done.code == 0
    assert f"section S1: spots were left out: {len(outs.barcodes) - len(inside)} outside the image" in done.err
    assert done.json["n_spots"] == [len(inside)]
    assert 0 < len(inside) < len(outs.barcodes)

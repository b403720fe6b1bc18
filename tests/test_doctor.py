"""The doctor: what works on this machine, what is wrong in a cohort, each finding with its fix."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from tests.io import conftest as files
from tests.test_cli import histoflow, part_of
from tests.test_workflow import tiny_cohort

from histoflow._errors import CountsError, GeneNamesWarning, ReadError
from histoflow.workflow import check_cohort, check_machine, doctor, preflight

make_outs, make_st = files.make_outs, files.make_st


@pytest.fixture(scope="module")
def manifest(cache_folder):
    return tiny_cohort(cache_folder)


def written(folder: Path, *rows: dict) -> Path:
    """A manifest of these rows."""
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def visium(outs, **more) -> dict:
    return {"section": outs.folder.parent.name, "kind": "visium", "slide": outs.slide, "counts": outs.folder} | more


def states(checks) -> dict[str, str]:
    return {check.what: check.state for check in checks}


# the machine


def test_every_part_of_the_machine_is_looked_at():
    found = {check.what: check for check in check_machine()}
    wanted = {"torch", "wsidata", "torch build", "threads", "memory", "cache", "disk of the cache", "encoders"}
    assert wanted <= set(found)
    assert not [check for check in found.values() if check.state == "fail"]
    assert not [check for check in found.values() if check.state != "ok" and not check.fix]
    assert "scatter, color" in found["encoders"].told
    assert list(found)[-1] in ("encoders", "timm", "LazySlide's model zoo")


@pytest.mark.parametrize(("part", "code", "extra"), [("lazyslide", 1, "slides"), ("scanpy", 0, "hvg")])
def test_how_to_install_what_is_missing_is_said(monkeypatch, part, code, extra):
    find_spec = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == part else find_spec(name))
    done = histoflow("doctor")
    assert done.code == code
    assert f"{part}: not installed; pip install 'histoflow[{extra}]'" in done.out


def test_a_cache_that_cannot_be_written_to_fails(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HISTOFLOW_CACHE", str(tmp_path / "file" / "cache"))
    done = histoflow("doctor", "--json")
    cache = next(check for check in done.json["checks"] if check["what"] == "cache")
    assert (done.code, done.json["ok"], cache["ok"], cache["error"]) == (1, False, False, "OutputError")
    assert cache["fix"] == "set HISTOFLOW_CACHE to a folder that is"


@pytest.mark.parametrize(("free", "state"), [(5e8, "fail"), (5e9, "note"), (5e10, "ok")])
def test_a_disk_without_room_is_told(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    check = doctor._disk(tmp_path)
    assert check.state == state
    assert ("histoflow cache clear" in check.fix) == (state != "ok")


def test_memory_is_what_the_scheduler_leaves(monkeypatch, tmp_path):
    whole = doctor.memory_bytes()
    (tmp_path / "limit").write_text("2000000000\n")
    monkeypatch.setattr(doctor, "_CGROUP_LIMIT", tmp_path / "limit")
    assert doctor.memory_bytes() == 2_000_000_000 < whole
    assert doctor._memory().state == "note"
    (tmp_path / "limit").write_text("max\n")
    assert doctor.memory_bytes() >= whole


def test_more_threads_than_processors_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "usable_processors", lambda: 0)
    assert states(doctor._torch())["threads"] == "note"
    monkeypatch.setattr(doctor, "usable_processors", torch.get_num_threads)
    assert states(doctor._torch())["threads"] == "ok"


def test_a_data_folder_that_is_gone_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOFLOW_DATA", str(tmp_path / "gone"))
    assert [check.state for check in doctor._data()] == ["fail"]
    monkeypatch.setenv("HISTOFLOW_DATA", str(tmp_path))
    assert [check.state for check in doctor._data()] == ["ok"]
    monkeypatch.delenv("HISTOFLOW_DATA")
    assert doctor._data() == []


def test_a_fix_is_what_an_error_says_last_or_that_of_its_class():
    one = doctor.of_error("S1", ReadError("it is cut; fetch it again"))
    assert (one.told, one.fix, one.error, one.state) == ("it is cut", "fetch it again", "ReadError", "fail")
    assert one.sentence == "it is cut; fetch it again"
    other = doctor.of_error("S1", CountsError("there are halves"))
    assert (other.told, other.fix) == ("there are halves", "give raw counts")


# a cohort


def test_a_good_cohort_is_good(manifest):
    done = histoflow("doctor", manifest, "--json")
    checks = {check["what"]: check for check in done.json["checks"]}
    assert (done.code, done.json["ok"]) == (0, True)
    assert all(check["ok"] for check in checks.values())
    assert checks["manifest"]["told"] == "5 rows: 3 reference, 1 held_out, 1 query"
    assert checks["P1_A"]["told"] == "56 spots, 65 genes, 1 × 1 µm/px (from metadata)"
    assert checks["P1_B"]["told"].endswith("(from pitch)")
    assert checks["P2_C"]["told"].startswith("slide without counts, ")
    assert checks["genes"]["told"] == "65 in all 3 references, species human"
    assert checks["overlaps"]["told"] == "none between sections"
    assert (checks["evaluate --by section"]["state"], checks["evaluate --by patient"]["state"]) == ("ok", "note")
    assert "P2_A (patient 'P2')" in checks["evaluate --by patient"]["told"]
    assert checks["spot distances"]["state"] == "note"
    alone = histoflow("doctor")
    assert alone.code == 0
    assert not any(line.startswith("FAIL") for line in alone.out.splitlines())


def test_every_fault_is_named_and_its_fix(make_outs, make_st, tmp_path):
    good, tables, damaged = make_outs(name="A"), make_st(name="B"), make_outs(name="C")
    (damaged.folder / "spatial" / "tissue_positions.csv").write_text("")
    tables.spots.write_text("x,y\n1,1\n")
    legacy = {"section": "B", "kind": "st", "slide": tables.slide, "counts": tables.counts, "spots": tables.spots}
    done = histoflow("doctor", written(tmp_path, visium(good), legacy, visium(damaged)))
    assert done.code == 1
    lines = dict(line.split(": ", 1) for line in done.out.splitlines())
    assert "ok   A" in lines
    assert "it needs columns x, y, pixel_x, pixel_y" in lines["FAIL B"]
    assert "has no rows; give a table with a row per spot" in lines["FAIL C"]
    assert not done.told


def test_missing_files_are_named_all_at_once(make_outs, tmp_path):
    outs = make_outs(name="A")
    path = written(
        tmp_path, visium(outs), visium(outs, section="B", slide="b.tif"), visium(outs, section="C", counts="c")
    )
    (check,) = check_cohort(path)
    assert (check.state, check.error) == ("fail", "ManifestError")
    assert "B slide" in check.told + check.fix
    assert "C counts" in check.told + check.fix
    (gone,) = check_cohort(tmp_path / "none.csv")
    assert "does not exist" in gone.sentence


def test_one_section_under_two_names_fails(manifest, tmp_path):
    rows = pd.read_csv(part_of(manifest, tmp_path, ["P1_A", "P2_A"]), index_col="section")
    rows.loc["TWIN"] = rows.loc["P1_A"]
    rows.to_csv(tmp_path / "twins.csv")
    found = {check.what: check for check in check_cohort(tmp_path / "twins.csv")}
    for what in ("same counts", "overlapping pixels"):
        assert (found[what].state, found[what].error) == ("fail", "SplitError")
        assert {"P1_A", "TWIN"} <= set(found[what].told.replace(",", " ").split())
        assert found[what].fix == "keep one of the two sections, or leave out the shared spots"


def test_sections_of_one_patient_are_told_together(make_outs, tmp_path):
    outs = [make_outs(name=name) for name in "ABC"]
    rows = [visium(one, patient=patient) for one, patient in zip(outs, ["P1", "P1", "P2"], strict=True)]
    found = {check.what: check for check in check_cohort(written(tmp_path, *rows))}
    assert "together: P1 (A, B)" in found["evaluate --by patient"].told
    assert (found["evaluate --by block"].state, found["evaluate --by block"].error) == ("note", "SplitError")
    assert "fill" in found["evaluate --by block"].fix


def test_serial_neighbours_are_a_note(make_outs, tmp_path):
    rows = [visium(make_outs(name=name), block="B1", order=place) for place, name in enumerate("AB")]
    found = {check.what: check for check in check_cohort(written(tmp_path, *rows))}
    assert (found["serial"].state, found["serial"].error) == ("note", "")
    assert "--by block" in found["serial"].fix


def test_counts_of_another_slide_fail(make_outs, tmp_path):
    outs, other = make_outs(name="A"), make_outs(name="B")
    positions = other.folder / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(positions)
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] += 100_000
    table.to_csv(positions, index=False)
    found = check_cohort(written(tmp_path, visium(outs), visium(other)))
    assert [check.what for check in found if check.state == "ok"][:2] == ["manifest", "A"]
    assert [(check.what, check.error) for check in found if check.state == "fail"] == [("B", "SlideMismatchError")]


def test_spots_too_far_apart_for_any_array_fail():
    section = anndata.AnnData(np.ones((3, 1)))
    section.uns["histoflow"] = {"section": "S"}
    section.obsm["spatial_um"] = np.array([[0.0, 0.0], [5000.0, 0.0], [0.0, 5000.0]])
    (check,) = preflight._pitch(section)
    assert (check.state, "mpp" in check.fix, "5e+03 µm apart" in check.told) == ("fail", True, True)
    section.obsm["spatial_um"] /= 50
    assert preflight._pitch(section) == []


def test_no_gene_in_common_fails_and_few_are_a_note(make_outs, tmp_path):
    outs = [make_outs(name=name) for name in "AB"]
    few = {check.what: check for check in check_cohort(written(tmp_path, *map(visium, outs)))}
    assert few["genes"].state == "note"
    cohort = preflight.io.read_cohort(tmp_path / "cohort.csv")
    with pytest.warns(GeneNamesWarning):
        assert len(list(cohort)) == 2
    cohort[1].var_names = [f"OTHER{place}" for place in range(cohort[1].n_vars)]
    assert preflight._genes(cohort).state == "fail"


def test_what_a_reader_warns_of_is_a_note(make_outs, tmp_path):
    outs = make_outs(name="A")
    row = {key: value for key, value in visium(outs).items() if key != "slide"}
    notes = [check for check in check_cohort(written(tmp_path, row)) if check.state == "note" and check.what == "A"]
    assert [bool(note.fix) for note in notes] == [True] * len(notes) != []

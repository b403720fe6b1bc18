"""Hostile names, files and folders: what is refused, what is made harmless, and that nothing is written elsewhere."""

import csv
import hashlib
import io as text_io
import json
import re
import struct
import zipfile
import zlib
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from tests.io.conftest import paint
from tests.models.conftest import GENES, make_section

from histoflow import bench, io, models
from histoflow._errors import OptionError, OutputError, ProtocolError, ReadError, ResolutionError, WeightsError
from histoflow._files import atomic_path, file_name, read_json, write_json
from histoflow._keys import UNS
from histoflow.bench.protocol import models_of, options_of, read_protocol
from histoflow.cli.root import genes_of, panel_of
from histoflow.io.images import existing_file, image_size, read_image
from histoflow.io.scale import stated_scale
from histoflow.io.spaceranger import frames_of, read_positions
from histoflow.pp import Panel
from histoflow.pp.blocks import _load
from histoflow.pp.encoders.weights import kind_of, read_state
from histoflow.workflow.reports import keep_pictures, read_pictures
from histoflow.workflow.tables import write_csv

SRC = Path(io.__file__).parents[1]
FORMULAS = ["=cmd()", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x","y")']
TAG = "<script>window.hacked=1</script>"
OUTSIDE = ["../../outside", "/outside", "..", ".", "a/../../outside", "a/b", "..\\outside", "%2e%2e", "é/ø"]


# names


@given(st.lists(st.text(), min_size=1, max_size=30, unique=True))
def test_names_of_files_stay_in_their_folder_and_differ(names):
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert not [name for name in made if "/" in name or "\0" in name or name in (".", "..") or "\\" in name]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_section_named_like_a_path_is_kept_in_the_folder_of_its_evaluation(name, tmp_path):
    sections = [make_section(name, seed=0), make_section("other", seed=1)]
    out = tmp_path / "deep" / "er" / "out"
    table = bench.run(sections, models={"mean": models.MeanBaseline()}, panel=Panel(tuple(GENES[:3])), out=out)
    assert (table["error"] == "").all()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert all(path.is_relative_to(out) for path in written)
    fold = table.loc[table["section"] == name, "fold"].iloc[0]
    kept = bench.read_prediction(out, fold=fold, section=name, model="mean")
    assert kept.n_obs == sections[0].n_obs
    assert models.load(bench.model_path(out, fold=fold, model="mean")).panel_.genes == tuple(GENES[:3])


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_picture_of_a_section_named_like_a_path_stays_in_its_folder(name, tmp_path, monkeypatch):
    section = make_section(name, seed=0)
    section.uns[UNS]["kind"] = "visium"
    picture = bench.Picture(b"a picture", (0.0, 1.0, 0.0, 1.0))
    monkeypatch.setattr("histoflow.workflow.reports.tissue_picture", lambda *_: picture)
    monkeypatch.setattr("histoflow.io.open_section_slide", lambda *_: None)
    keep_pictures(tmp_path / "out", [section], [name])
    assert read_pictures(tmp_path / "out") == {name: picture}
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


# tables


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_a_table_is_a_formula(text, tmp_path):
    table = pd.DataFrame({"gene": [text, "KRT8"], "r": [-0.5, 0.25], text: [text, None], "n": [1, -2]})
    write_csv(tmp_path / "t.csv", table)
    with (tmp_path / "t.csv").open(newline="") as handle:
        head, first, second = csv.reader(handle)
    harmless = "'" + text.replace("\r", "\n")
    assert head == ["gene", "r", harmless, "n"]
    assert first == [harmless, "-0.5", harmless, "1"]
    assert second == ["KRT8", "0.25", "", "-2"]


def test_a_text_that_ends_a_row_is_no_formula_in_the_next(tmp_path):
    write_csv(tmp_path / "t.csv", pd.DataFrame({"name": ["a\r=cmd()", "b\r\n=cmd()"], "n": [1, 2]}))
    assert (tmp_path / "t.csv").read_text() == 'name,n\n"a\n=cmd()",1\n"b\n=cmd()",2\n'


def test_a_category_is_text_too_and_the_table_is_not_changed(tmp_path):
    table = pd.DataFrame({"name": pd.Categorical(["=1", "b"])})
    before = table.copy()
    write_csv(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_text() == "name\n'=1\nb\n"
    pd.testing.assert_frame_equal(table, before)


def test_nothing_else_writes_tables_of_names_that_users_bring():
    own = {"workflow/tables.py"}
    invented = {"datasets/formats.py", "datasets/planted.py"}  # of the toy, whose names we make, in formats of others
    found = {
        str(path.relative_to(SRC))
        for path in SRC.rglob("*.py")
        if re.search(r"to_csv\(|csv\.writer|DictWriter", path.read_text())
    }
    assert found == own | invented


def test_genes_with_hostile_names_go_through_fit_predict_save_and_load_as_they_are(tmp_path):
    names = [TAG, "=cmd()", *GENES[2:]]
    sections = [make_section(f"S{i}", seed=i) for i in range(3)]
    for section in sections:
        section.var_names = names
    fitted = models.RidgeProbe().fit(sections, panel=names[:3])
    fitted.save(tmp_path / "model")
    predicted = models.load(tmp_path / "model").predict(sections[0])
    predicted.write_h5ad(tmp_path / "p.h5ad")
    assert list(io.read_anndata(tmp_path / "p.h5ad", "prediction").var_names) == names[:3]
    page = bench.prediction_page(predicted, picture=None, no_picture="none", source="p.h5ad")
    assert TAG not in page
    assert "<script>window.hacked" not in page


# outputs


def test_an_output_that_is_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "link.json").symlink_to(tmp_path / "precious")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "link.json").read_text()) == {"a": 1}


def test_an_output_that_is_a_link_to_nowhere_is_replaced(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere" / "file")
    write_csv(tmp_path / "link.csv", pd.DataFrame({"a": [1]}))
    assert (tmp_path / "link.csv").read_text() == "a\n1\n"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_is_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with atomic_path(tmp_path / "link") as folder:
        folder.mkdir()
        (folder / "own").write_text("new")
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert [path.name for path in (tmp_path / "link").iterdir()] == ["own"]
    assert not (tmp_path / "link").is_symlink()


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / ("x" * 5000), {})


# inputs


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "{", "[1, ", "\xff"])
def test_json_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(ReadError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "~nobody-of-this-name/slide.tif"])
def test_a_path_that_cannot_be_one_is_refused(path):
    with pytest.raises(ReadError, match="give an existing file"):
        existing_file(path, "slide")


def test_a_manifest_with_paths_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text(f"section,kind,slide\nS1,slide,{'x' * 5000}\nS2,slide,~nobody-of-this-name/y.tif\n")
    with pytest.raises(ValueError, match=r"names files that do not exist: S1 slide .*; S2 slide "):
        io.read_cohort(tmp_path / "c.csv")


@pytest.mark.parametrize("content", [b"KRT8\n\xff\xfe\n", b"\x80"])
def test_lists_of_genes_that_are_no_text_are_refused(content, tmp_path):
    (tmp_path / "genes.txt").write_bytes(content)
    for read in (panel_of, genes_of):
        with pytest.raises(OptionError, match="it is not text"):
            read(str(tmp_path / "genes.txt"))


@pytest.mark.parametrize("text", ["²", "a\0b", "x" * 5000])
def test_a_panel_that_is_neither_number_nor_file_is_refused(text):
    with pytest.raises(OptionError, match="neither a number nor a file of gene names"):
        panel_of(text)


def test_a_list_of_genes_from_a_spreadsheet_has_no_mark_in_its_first_name(tmp_path):
    (tmp_path / "genes.txt").write_bytes(b"\xef\xbb\xbfKRT8\r\nACTB\r\n")
    given = str(tmp_path / "genes.txt")
    assert panel_of(given).genes == ("KRT8", "ACTB") == tuple(genes_of(given))


def png_of(width: int, height: int) -> bytes:
    """A small png whose header claims other sizes, with a checksum that is right."""
    made = bytearray(paint(0.1))
    made[16:24] = struct.pack(">II", width, height)
    made[29:33] = struct.pack(">I", zlib.crc32(made[12:29]))
    return bytes(made)


@pytest.mark.parametrize("size", [(60_000, 60_000), (1_000_000_000, 1), (65_535, 400)])
def test_a_picture_of_more_pixels_than_its_bytes_can_hold_is_refused(size, tmp_path):
    (tmp_path / "slide.png").write_bytes(png_of(*size))
    assert image_size(tmp_path / "slide.png") == size
    with pytest.raises(ReadError, match=rf"bytes claims {size[0]} x {size[1]} pixels"):
        read_image(tmp_path / "slide.png")


@pytest.mark.parametrize("factor", ["abc", [1], {"a": 1}, -1, float("inf"), float("nan"), 10**400, 1e9, True and "1"])
def test_scale_factors_that_are_none_are_refused(factor, tmp_path):
    with pytest.raises(ReadError, match="says tissue_hires_scalef is"):
        frames_of(tmp_path, {"tissue_hires_scalef": factor})


@pytest.mark.parametrize("stated", ["abc", [1], -1, float("inf"), float("nan"), 10**400, 1e9])
def test_a_stated_scale_that_is_none_is_refused(stated):
    with pytest.raises(ResolutionError, match="microns_per_pixel is"):
        stated_scale({"microns_per_pixel": stated}, "here")


@pytest.mark.parametrize("cell", ["nan", "inf", "1e300", "9" * 400, "-1e12", "x"])
@pytest.mark.parametrize("column", range(1, 6))
def test_positions_that_are_no_places_are_refused(column, cell, tmp_path):
    rows = [["SPOT1", "1", "0", "0", "5", "5"], ["SPOT2", "1", "0", "2", "5", "9"]]
    rows[1][column] = cell
    (tmp_path / "tissue_positions_list.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    if column == 1 and cell in ("-1e12", "1e300"):  # a number that is not 1 says that it is not under tissue
        assert not read_positions(tmp_path)["selected"].iloc[1]
        return
    with pytest.raises(ReadError, match=r"tissue_positions_list\.csv"):
        read_positions(tmp_path)


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return print, ("pickled code ran",)


def test_pickles_in_a_cache_of_features_are_made_anew_and_not_run(tmp_path, capsys):
    body = text_io.BytesIO()
    np.save(body, np.array([Evil()], dtype=object), allow_pickle=True)
    content = body.getvalue()
    (tmp_path / "f.npy").write_bytes(content + hashlib.sha256(content).digest())
    assert _load(tmp_path / "f.npy", (1, 1)) is None
    assert "pickled code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("known", [[], "text", 3, {"mpp_x": "a", "slide_id": 1}, {"slide": ["a"]}])
@pytest.mark.parametrize("slot", ["spatial", UNS, "histo"])
def test_records_of_tools_that_are_none_are_refused_by_an_error_of_ours(slot, known, tmp_path):
    made = AnnData(np.ones((3, 2), dtype=np.float32), obsm={"spatial": np.ones((3, 2))})
    made.uns[slot] = {"L": known} if slot == "spatial" else known
    (tmp_path / "slide.png").write_bytes(paint(0.1))
    with pytest.raises((OptionError, ReadError, ResolutionError, KeyError)) as caught:
        io.section_from_anndata(made, slide=tmp_path / "slide.png")
    assert type(caught.value).__module__ == "histoflow._errors"


@pytest.mark.parametrize(
    "change",
    [
        *({"panel": None}, {"panel": {"genes": [["a"]], "rule": 1}}, {"panel": {"n_genes": "x"}}, {"min_counts": [1]}),
        *({"seeds": None}, {"seeds": ["a"]}, {"areas": {"n_areas": "x"}}, {"areas": [1]}),
    ],
)
def test_a_protocol_that_states_nonsense_is_refused(change, tmp_path):
    told = {"format": 1, "models": {}, "folds": [], "by": "section", "areas": None, "panel": {"n_genes": 5}}
    told |= {"normalize": "library", "min_counts": 0, "seeds": [0]}
    write_json(tmp_path / "protocol.json", told | change)
    with pytest.raises((ProtocolError, ValueError)) as caught:
        options_of(read_protocol(tmp_path))
    assert type(caught.value).__module__ == "histoflow._errors"


@pytest.mark.parametrize("stated", [None, 3, {}, {"estimator": "mean"}, {"estimator": "mean", "options": {"x": 1}}])
def test_a_protocol_of_models_that_are_none_is_refused(stated):
    with pytest.raises(ProtocolError, match="the protocol was damaged or changed"):
        models_of({"models": {"m": stated}})


def test_what_is_written_is_what_the_library_reads(tmp_path):
    section = make_section("S", seed=0)
    section.write_h5ad(tmp_path / "s.h5ad")
    ours, theirs = io.read_anndata(tmp_path / "s.h5ad", "AnnData"), anndata.read_h5ad(tmp_path / "s.h5ad")
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())


def ring(*corners):
    return {"type": "Polygon", "coordinates": [[*map(list, corners), list(corners[0])]]}


@pytest.mark.parametrize(
    "value",
    [
        *([ring((0, 0), (1e400, 0), (1, 1))], [ring((0, 0), (10**400, 0), (1, 1))], [ring(("a", 0), (1, 0), (1, 1))]),
        *(
            [{"type": "Polygon"}],
            [{"type": "Polygon", "coordinates": 3}],
            [{"type": "MultiPolygon", "coordinates": [1]}],
        ),
    ],
)
def test_polygons_that_are_none_are_refused(value, tmp_path):
    (tmp_path / "r.geojson").write_text(json.dumps(value))
    with pytest.raises(ReadError, match=r"r\.geojson holds"):
        io.read_polygons(tmp_path / "r.geojson")


@pytest.mark.parametrize("damage", ["chunk", "metadata", "genes", "size", "shape"])
def test_super_pixels_that_were_damaged_are_refused(damage, tmp_path, monkeypatch):
    from fuzz import seeds
    from fuzz.engine import write_case

    case = dict(seeds.zarrs()[0])
    names = {"chunk": next(n for n in case if "labels/tissue" in n and "/c/" in n), "metadata": "cells.zarr/zarr.json"}
    if damage in names:
        case[names[damage]] = case[names[damage]][:-7] if damage == "metadata" else b"\x28\xb5\x2f\xfd broken"
    elif damage == "shape":
        monkeypatch.setattr("histoflow.io.superpixels._MOST_SUPERPIXELS", 15)  # there are 16
    else:
        root = json.loads(case["cells.zarr/zarr.json"])
        known = root["attributes"][UNS]
        known |= {"panel": ["A", "A"]} if damage == "genes" else {"superpixel_px": [0, 1]}
        case["cells.zarr/zarr.json"] = json.dumps(root).encode()
    write_case(case, tmp_path / "case")
    with pytest.raises(ReadError, match=r"cells\.zarr"):
        io.SuperPixels(tmp_path / "case" / "cells.zarr").anndata()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of two gigabytes
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x0fabc.",
        b"cposix\nsystem\n(S'touch outside'\ntR.",
    ],
)
def test_pickles_that_claim_or_run_something_are_refused_as_weights(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth cannot be read"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_long_text_among_weights_is_refused_before_torch_sees_it(zipped, tmp_path, monkeypatch):
    # torch searches its error messages, which repeat such a text, in quadratic time: 38 s for one of 50 kB.
    torch.save({"w" * 20_000: torch.ones(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(WeightsError, match=r"w\.pth hold a text of 20000 characters"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_both_formats_are_read(zipped, tmp_path):
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.float16)}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = read_state(tmp_path / "w.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_pickled_bytes_without_their_checksum_or_end_are_refused(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content.replace(b"weight", b"height", 1))
    with pytest.raises(WeightsError, match="CRC"):
        read_state(tmp_path / "w.pth")


def test_an_archive_of_weights_with_a_name_that_is_no_text_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("é", b"x")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(WeightsError, match=r"w\.pth cannot be read"):
        kind_of(tmp_path / "w.pth")


@pytest.mark.parametrize("cell", ["1e300", "nan", "inf", "-1e12"])
@pytest.mark.parametrize("column", ["x", "pixel_x"])
def test_spots_that_are_no_places_are_refused(column, cell, tmp_path):
    spots = pd.DataFrame({"x": ["1", "2"], "y": ["1", "1"], "pixel_x": ["5", "9"], "pixel_y": ["5", "5"]})
    spots.loc[1, column] = cell
    spots.to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    (tmp_path / "counts.tsv").write_text("\tA\n1x1\t1\n2x1\t2\n")
    (tmp_path / "slide.png").write_bytes(paint(0.1))
    with pytest.raises(ReadError, match=r"spots\.tsv has 1 spots without pixels or array position"):
        io.read_st(tmp_path / "counts.tsv", tmp_path / "spots.tsv", tmp_path / "slide.png", mpp=4.0)

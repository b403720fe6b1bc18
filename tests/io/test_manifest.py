"""Manifests: read lazily and once, resolved, and refused as a whole with everything that is wrong."""

import gzip

import numpy as np
import pytest
from anndata import AnnData
from PIL import Image

from histoflow._errors import ManifestError, MissingSlotError, OptionError, ReadError
from histoflow.io import Cohort, manifest, read_cohort

pytestmark = pytest.mark.filterwarnings("ignore::histoflow._errors.GeneNamesWarning")


def write(folder, text, name="cohort.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def cohort_file(make_outs, make_st, tmp_path):
    """A Visium section, a legacy ST section held out, and a slide to predict, by relative paths."""
    make_outs(name="V")
    make_st(name="T")
    return write(
        tmp_path,
        "section,kind,slide,counts,spots,patient,block,order,mpp,role,spots_frame\n"
        "V,visium,V.png,V/outs,,P1,B1,3,,,fullres\n"
        "T,st,T.png,T.tsv.gz,T_spots.tsv,P2,,,8.8x8.7,held_out,\n"
        "Q,slide,V.png,,,P3,,,4,,\n",
    )


def test_rows_are_resolved_and_cells_left_empty_are_not_given(cohort_file, tmp_path):
    cohort = read_cohort(cohort_file)
    visium, st, query = cohort.rows
    assert (visium.section, visium.kind, visium.role, visium.order) == ("V", "visium", "reference", 3)
    assert visium.counts == tmp_path / "V" / "outs"
    assert (visium.mpp, visium.study, visium.spots) == (None, None, None)
    assert (st.mpp, st.role, st.spots) == ((8.8, 8.7), "held_out", tmp_path / "T_spots.tsv")
    assert (query.role, query.slide, query.mpp) == ("query", tmp_path / "V.png", 4.0)
    assert cohort.name == "cohort"


def test_a_cohort_is_a_sequence_of_the_sections_with_counts(cohort_file):
    cohort = read_cohort(cohort_file)
    assert len(cohort) == 2
    assert cohort.section_ids == ["V", "T"]
    assert [row.section for row in cohort.queries] == ["Q"]
    assert [section.uns["histoflow"]["kind"] for section in cohort] == ["visium", "st"]
    known = cohort[0].uns["histoflow"]
    assert {key: known[key] for key in ("section", "patient", "block", "order")} == {
        "section": "V",
        "patient": "P1",
        "block": "B1",
        "order": 3,
    }
    assert "study" not in known
    assert (cohort[0].obs["patient"] == "P1").all()
    assert cohort[-1].uns["histoflow"]["mpp_source"] == "given"


def test_a_section_is_read_once_and_parts_share_it(cohort_file, monkeypatch):
    cohort = read_cohort(cohort_file)
    first = cohort[0]
    monkeypatch.setattr(manifest, "visium_section", lambda *args: pytest.fail("read again"))
    assert cohort[0] is cohort[:1][0] is cohort.select(role="reference")[0] is first
    assert len(cohort[1:]) == 1


def test_nothing_is_read_before_it_is_asked_for(cohort_file, monkeypatch):
    monkeypatch.setattr(manifest, "visium_section", lambda *args: pytest.fail("read too early"))
    cohort = read_cohort(cohort_file)
    assert cohort[1].n_obs > 0
    assert cohort.select(role="held_out").section_ids == ["T"]


def test_selection_by_role_and_by_id(cohort_file):
    cohort = read_cohort(cohort_file)
    assert cohort.select(role="query").section_ids == []
    assert [row.section for row in cohort.select(role="query").queries] == ["Q"]
    assert cohort.select(sections=["T"]).section_ids == ["T"]
    assert cohort.select(role="reference", sections=["T"]).section_ids == []
    with pytest.raises(OptionError, match="role must be one of reference, held_out, query, got 'test'"):
        cohort.select(role="test")
    with pytest.raises(OptionError, match="cohort cohort has no section X; it has V, T, Q"):
        cohort.select(sections=["X"])


def test_tab_separated_and_absolute_paths_are_read(cohort_file, tmp_path):
    text = cohort_file.read_text().replace(",", "\t").replace("V/outs", str(tmp_path / "V" / "outs"))
    (tmp_path / "other").mkdir()
    assert read_cohort(write(tmp_path, text, "cohort.tsv")).rows == read_cohort(cohort_file).rows


def test_a_spreadsheets_byte_order_mark_and_blank_lines_do_no_harm(cohort_file):
    rows = read_cohort(cohort_file).rows
    cohort_file.write_text("\ufeff" + cohort_file.read_text() + ",,,,,,,,,,\n\n")
    assert read_cohort(cohort_file).rows == rows


def test_an_h5ad_is_read_through_its_recorded_slide(cohort_file, tmp_path):
    read_cohort(cohort_file)[0].write_h5ad(tmp_path / "V.h5ad")
    again = read_cohort(write(tmp_path, "section,kind,counts,study\nV2,h5ad,V.h5ad,X\n", "h.csv"))[0]
    known = again.uns["histoflow"]
    assert {key: known[key] for key in ("section", "kind", "patient", "study")} == {
        "section": "V2",
        "kind": "h5ad",
        "patient": "P1",
        "study": "X",
    }
    (tmp_path / "V.h5ad").write_bytes((tmp_path / "V.h5ad").read_bytes()[:2000])
    with pytest.raises(ReadError, match=r"V\.h5ad is not a whole h5ad file"):
        read_cohort(tmp_path / "h.csv")[0]


HEADER = "section,kind,slide,counts,spots,order,mpp,pitch_um,role\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cohort\.csv is empty; its first line names columns"),
        (HEADER, r"cohort\.csv has no rows; write one per section"),
        (HEADER + ",,,,,,,,\n", r"cohort\.csv has no rows"),
        ("section,kind,patiennt\n", "unknown column 'patiennt'; did you mean 'patient'"),
        ("section,kind,colour\n", "unknown column 'colour'; known are section, kind"),
        ("section,kind,kind\n", "column kind more than once"),
        ("section,slide\nA,a.png\n", "lacks column kind"),
        (HEADER + "A\n", r"cohort\.csv, row 2 lacks kind; fill in"),
        (HEADER + ",slide,a.png\n", r"row 2 lacks section"),
        (HEADER + "A,st,a.png\n", r"row 2 \(A, st\) lacks counts, spots; fill in"),
        (HEADER + "A,visium,a.png\n", r"row 2 \(A, visium\) lacks counts"),
        (HEADER + "A,slide\n", r"row 2 \(A, slide\) lacks slide"),
        (HEADER + "A,visum,a.png,c\n", "column kind: got 'visum'; this version reads visium, visium_hd, st"),
        (HEADER + "A,visium_hd,a.png\n", r"row 2 \(A, visium_hd\) lacks counts"),
        (HEADER + "A,slide,a.png,,,x\n", "row 2, column order: got 'x', wanted a whole number"),
        (HEADER + "A,slide,a.png,,,1.5\n", "column order: got '1.5'"),
        (HEADER + "A,slide,a.png,,,,fine\n", "column mpp: got 'fine', wanted µm per pixel"),
        (HEADER + "A,slide,a.png,,,,0\n", "column mpp: got '0'"),
        (HEADER + "A,slide,a.png,,,,,nan\n", "column pitch_um: got 'nan', wanted µm"),
        (HEADER + "A,st,a.png,c,s,,,,test\n", "column role: got 'test'; a row of kind st may be reference, held_out"),
        (HEADER + "A,slide,a.png,,,,,,reference\n", "got 'reference'; a row of kind slide may be query"),
        (HEADER + "A,slide,a.png,c\n", "column counts: a row of kind slide has none"),
        (HEADER + "A,slide,a.png\nA,slide,b.png\n", r"cohort\.csv has section A more than once"),
        (HEADER + "A,slide,a.png,,,,,,,too,many\n", "row 2 has more cells than there are columns"),
        (HEADER + "A,slide,a.png\nB,visium,,c\n", r"do not exist: A slide .*a\.png; B counts .*c$"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read_cohort(write(tmp_path, text))


def test_a_manifest_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ReadError, match=r"manifest .*none\.csv does not exist"):
        read_cohort(tmp_path / "none.csv")
    (tmp_path / "zipped.csv").write_bytes(gzip.compress(HEADER.encode()))
    with pytest.raises(ReadError, match=r"cannot read manifest .*zipped\.csv"):
        read_cohort(tmp_path / "zipped.csv")


def test_sections_in_hand_make_a_cohort(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    known = {"kind": "st", "patient": "P", "slide": str(tmp_path / "a.png")}
    sections = [AnnData(np.ones((2, 2)), uns={"histoflow": known | {"section": name}}) for name in "AB"]
    cohort = Cohort.from_sections(sections, name="mine")
    assert [section is given for section, given in zip(cohort, sections, strict=True)] == [True, True]
    assert cohort.section_ids == ["A", "B"]
    assert (cohort.rows[0].patient, cohort.rows[0].slide) == ("P", tmp_path / "a.png")
    assert len(cohort.select(role="reference")) == 2
    with pytest.raises(ManifestError, match="cohort mine has section A more than once"):
        Cohort.from_sections([sections[0], sections[0]], name="mine")
    with pytest.raises(MissingSlotError, match="section number 0 has no id"):
        Cohort.from_sections([AnnData(np.ones((1, 1)))])

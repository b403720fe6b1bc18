"""The auditor on sections: one patient under two names, serial sections, shared pixels, empty cells; and areas."""

import numpy as np
import pytest
from scipy import sparse
from tests.models.conftest import GENES, make_section

from histoflow import bench
from histoflow._errors import OptionError, SplitError
from histoflow._keys import UNS
from histoflow.bench.audit import count_rows
from histoflow.models import LocationBaseline, MeanBaseline, RidgeProbe
from histoflow.pp import Panel

PANEL = Panel(tuple(GENES[:4]))


def run(sections, by="section", models=None):
    return bench.run(sections, models=models or {"mean": MeanBaseline()}, by=by, panel=PANEL)


@pytest.fixture
def sections():
    made = [make_section(f"S{i}", seed=i, n_spots=64) for i in range(3)]
    for section, patient, order in zip(made, ("P1", "P2", "P3"), (2, 7, 9), strict=True):
        section.uns[UNS] |= {"patient": patient, "block": f"{patient}-1", "order": order}
    return made


def renamed(original, **ids):
    """The same pixels and counts under other names, in another order and on a slide that was saved again."""
    again = original[::-1].copy()
    again.obs_names = [f"copy-{name}" for name in again.obs_names]
    again.uns[UNS] = original.uns[UNS] | {"slide_id": "saved again"} | ids
    return again


def test_an_honest_cohort_has_no_findings(sections):
    for by in ("section", "block", "patient", "area"):
        assert [finding.kind for finding in bench.audit(sections, by)] == []
    assert set(run(sections, "patient")["shares"]) == {"another patient, study not stated"}


def test_one_patient_under_two_names_is_refused_by_its_pixels(sections):
    cohort = [*sections, renamed(sections[0], section="S9", patient="P9", block="P9-1")]
    with pytest.raises(SplitError, match=r"S0 and S9 have 64 equal rows of embeddings .*: the same pixels twice"):
        run(cohort, "patient")
    found = {finding.kind for finding in bench.audit(cohort, "patient")}
    assert found == {"same_pixels", "same_counts"}


def test_one_patient_under_two_names_is_refused_by_its_counts(sections):
    again = renamed(sections[0], section="S9", patient="P9", block="P9-1")
    for slot in ("scatter", "color", "scatter_dense", "gigapath"):
        again.obsm[slot] = again.obsm[slot] + np.float32(0.001)
    again = again[:, GENES[::-1]].copy()
    with pytest.raises(SplitError, match="sections S0 and S9 have 64 equal rows of counts: the same spots twice; they"):
        run([*sections, again], "patient")


def test_two_spellings_are_refused_by_patient_and_told_by_section(sections):
    sections[1].uns[UNS]["patient"] = "Patient 1"
    with pytest.raises(SplitError, match="have the patient ids 'P1' and 'Patient 1', which look like one"):
        bench.plan_folds(sections, "patient")
    shares = run(sections)["shares"].unique()
    assert sum("'P1' and 'Patient 1'" in label or "'Patient 1' and 'P1'" in label for label in shares) == 2


def test_adjacent_serial_sections_are_told_by_section_and_refused_by_block(sections):
    for section, order in zip(sections, (2, 3, 9), strict=True):
        section.uns[UNS] |= {"patient": "P1", "block": section.uns[UNS]["section"], "order": order}
    with pytest.raises(SplitError, match="sections S0 and S1 of one patient have consecutive numbers in `order`"):
        run(sections, "block")
    for section in sections:
        section.uns[UNS]["block"] = "B"
    assert run(sections)["shares"].iloc[0] == "adjacent serial sections of one block: optimistic"
    assert [f.sections for f in bench.audit(sections) if f.kind == "serial"] == [("S0", "S1"), ("S1", "S0")]
    with pytest.raises(SplitError, match=r"3 sections give 1 group \(B\)"):
        run(sections, "block")


def test_overlapping_pixels_are_refused_and_counted(sections):
    for section in sections[:2]:
        section.uns[UNS]["slide_id"] = "one"
    sections[1].obsm["spatial_um"] = sections[1].obsm["spatial_um"] + [100.0, 0]
    for by in ("section", "patient"):
        with pytest.raises(SplitError, match=r"S0 and S1 lie on one slide, and the patches of 64 spots held out share"):
            run(sections, by)
    sections[1].obsm["spatial_um"] = sections[1].obsm["spatial_um"] + [9000.0, 0]
    labels = run(sections)["shares"].unique()
    assert labels[0] == "another patient, study not stated; sections S0 and S1 lie on one slide, at other places"
    assert labels[2] == "another patient, study not stated"


def test_empty_patient_cells_are_refused_by_name(sections):
    sections[1].obs["patient"] = ["P2"] * 60 + [None, np.nan, "", " "]
    with pytest.raises(SplitError, match=r"S1 is said to be of patient 'P2', but 4 of its cells in obs"):
        run(sections, "patient")
    assert "4 of its cells" in run(sections)["shares"].unique()[1]
    del sections[1].uns[UNS]["patient"]
    with pytest.raises(SplitError, match="cannot split by patient: not stated for S1; fill the column 'patient'"):
        run(sections, "patient")


def test_rows_of_counts_are_told_apart_by_counts_alone():
    counts = sparse.csr_matrix(
        np.array([[5, 0, 7, 0, 0, 0], [5, 7, 0, 0, 0, 0], [5, 0, 7, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    )
    section = make_section("S", seed=0, n_spots=4)
    section.X = counts.astype(np.float32)
    first, second, third, _ = count_rows(section, GENES)
    assert first == third != second
    section.X = counts.astype(np.int64).toarray()
    np.testing.assert_array_equal(count_rows(section, GENES)[:2], [first, second])


# areas


def test_areas_hold_out_every_spot_once_behind_a_buffer(sections):
    folds = bench.plan_folds(sections, "area")
    assert [fold.name for fold in folds[:5]] == ["S0-area1", "S0-area2", "S0-area3", "S0-area4", "S1-area1"]
    assert {fold.shares for fold in folds} == {"same section, 400 µm away: optimistic"}
    for place in range(3):
        own = [fold.rows for fold in folds if fold.test == (place,)]
        assert sorted(row for _, test in own for row in test) == list(range(64))
        for train, test in own:
            xy = sections[place].obsm["spatial_um"]
            assert np.sqrt(((xy[list(train)][:, None] - xy[list(test)]) ** 2).sum(-1)).min() >= 400


def test_areas_are_scored_with_the_rest_of_the_cohort_in_training(sections, tmp_path):
    models = {"near": LocationBaseline(), "ridge": RidgeProbe("hest")}
    table = bench.run(sections, models=models, by="area", panel=PANEL, out=tmp_path)
    assert set(table["by"]) == {"area"}
    assert table["fold"].nunique() == 12
    assert (table["error"] == "").all()
    kept = bench.read_prediction(tmp_path, fold="S1-area2", section="S1", model="ridge")
    fold = bench.plan_folds(sections, "area")[5]
    assert list(kept.obs_names) == list(sections[1].obs_names[list(fold.rows[1])])
    train = [sections[0], sections[1][list(fold.rows[0])].copy(), sections[2]]
    by_hand = RidgeProbe("hest").fit(train, panel=PANEL).predict(sections[1][list(fold.rows[1])].copy())
    np.testing.assert_array_equal(kept.X, by_hand.X)


def test_a_buffer_below_the_patch_is_refused(sections):
    with pytest.raises(SplitError, match=r"S0: buffer_um=200 is below 317 µm, the diagonal of the widest patch"):
        run(sections, bench.Areas(buffer_um=200))
    wide = bench.plan_folds(sections, bench.Areas(n_areas=2, buffer_um=500))
    assert len(wide) == 6
    with pytest.raises(SplitError, match="section S0 cannot be split by area: buffer_um=9000 leaves no training spot"):
        bench.plan_folds(sections, bench.Areas(buffer_um=9000))
    for options in ({"n_areas": 1}, {"buffer_um": -1.0}):
        with pytest.raises(OptionError, match="must be"):
            bench.Areas(**options)


def test_areas_leave_sections_that_a_manifest_holds_out_alone(sections):
    from tests.bench.test_runner import cohort_of

    folds = bench.plan_folds(cohort_of(sections, ["reference", "held_out", "reference"]), "area")
    assert {fold.test for fold in folds} == {(0,), (2,)}
    assert {fold.train for fold in folds} == {(0, 2)}
    with pytest.raises(SplitError, match="every section is held out by the manifest"):
        bench.plan_folds(cohort_of(sections, ["held_out"] * 3), "area")

"""What is mapped: the first model on every section there is room for, then others; what is left out is told."""

import numpy as np
import pytest
from tests.bench import invented
from tests.bench.report.test_packing import unpack

from histoflow._errors import ReadError
from histoflow.bench.report import maps
from histoflow.bench.report.maps import Picture, shown_sections, spacing_um

BEST = "best<i>"


def read(section, model):
    return invented.prediction(section, model)


def shown(sections=("S1", "S2"), models=(BEST,), **options):
    how = {"genes": invented.GENES, "pictures": {}} | options
    return shown_sections(sections, models, how.pop("read", read), **how)


def test_a_section_carries_its_places_expression_and_picture():
    picture = Picture(invented.white_jpeg(), (0.0, 900.0, 10.0, 910.0))
    (record,) = shown(["S1"], pictures={"S1": picture}).sections
    made = read("S1", BEST)
    np.testing.assert_allclose(unpack(record["xy"]), made.obsm["spatial_um"], atol=0.02)
    np.testing.assert_allclose(unpack(record["measured"]), made.layers["measured"], atol=1e-4)
    np.testing.assert_allclose(unpack(record["maps"][BEST]["predicted"]), made.X, atol=1e-4)
    assert record["spacing_um"] == 100.0
    assert record["picture"]["extent_um"] == [0.0, 900.0, 10.0, 910.0]
    assert record["picture"]["source"].startswith("data:image/jpeg;base64,/9j/")


def test_only_the_genes_wanted_are_carried_in_their_order():
    (record,) = shown(["S1"], genes=["CD3E", "NOSUCH", "EPCAM"]).sections
    assert record["genes"] == ["CD3E", "EPCAM"]
    np.testing.assert_allclose(unpack(record["measured"]), read("S1", BEST).layers["measured"][:, [5, 0]], atol=1e-4)


def test_widths_are_of_the_interval_or_else_of_the_draws():
    spread = read("S1", BEST)
    spread.layers["std"] = np.full(spread.shape, 0.25)
    cases = {"interval": invented.calibrated(read("S1", BEST)), "spread": spread, None: read("S1", BEST)}
    for kind, made in cases.items():
        (record,) = shown(["S1"], read=lambda *_, made=made: made).sections
        assert record["maps"][BEST]["width_kind"] == kind
    widths = [case.layers["upper"] - case.layers["lower"] for case in [cases["interval"]]]
    (record,) = shown(["S1"], read=lambda *_: cases["interval"]).sections
    np.testing.assert_allclose(unpack(record["maps"][BEST]["width"]), widths[0], atol=1e-4)
    assert record["maps"][BEST]["level"] == 0.9


def test_flagged_places_are_carried_and_counted():
    found = shown(["S1"], read=lambda *_: invented.calibrated(read("S1", BEST)))
    assert found.sections[0]["flagged"] == [0, 1, 2]
    assert found.n_unfamiliar == {"S1": (3, invented.N_SPOTS)}


def test_too_many_spots_are_drawn_from_at_random(monkeypatch):
    monkeypatch.setattr(maps, "MOST_SPOTS", 10)
    found = shown(["S1"])
    (record,) = found.sections
    assert found.n_thinned == {"S1": 10}
    measured, places = read("S1", BEST).layers["measured"], read("S1", BEST).obsm["spatial_um"]
    for xy, values in zip(unpack(record["xy"]), unpack(record["measured"]), strict=True):
        (spot,) = np.flatnonzero(np.abs(places - xy).max(axis=1) < 1)
        np.testing.assert_allclose(values, measured[spot], atol=1e-4)


def test_sections_beyond_the_budget_are_told():
    one = 3 * invented.N_SPOTS * len(invented.GENES)
    found = shown(["S1", "S2", "S3"], budget=2 * one)
    assert [record["name"] for record in found.sections] == ["S1", "S2"]
    assert found.left_out == ["S3"]
    assert [record["measured"]["bits"] for record in found.sections] == [8, 8]


def test_where_there_is_room_numbers_are_finer():
    assert shown(["S1"]).sections[0]["measured"]["bits"] == 16


def test_another_model_is_mapped_on_all_sections_or_on_none():
    one = 2 * 3 * invented.N_SPOTS * len(invented.GENES)  # of a section, with one model, in 16 bits
    names = [BEST, "hest_fm", "mean"]
    assert shown(models=names).models == names
    assert shown(models=names, budget=2 * one + 2 * one * 2 // 3).models == names[:2]
    assert shown(models=names, budget=2 * one).models == names[:1]


def test_what_cannot_be_read_is_told_with_its_reason():
    def broken(section, model):
        if section == "S2":
            raise ReadError("there is none")
        return read(section, model)

    found = shown(read=broken)
    assert [record["name"] for record in found.sections] == ["S1"]
    assert found.lacking == {BEST: (["S2"], "there is none")}


@pytest.mark.parametrize(
    ("xy", "expected"), [([[0, 0], [3, 4], [0, 5]], 3.2), ([[1, 1]], 100.0), ([[1, 1]] * 2, 100.0)]
)
def test_spacing_is_the_distance_to_the_nearest_other_place(xy, expected):
    assert spacing_um(np.array(xy, dtype=float)) == pytest.approx(expected, abs=0.05)

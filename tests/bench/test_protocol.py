"""The protocol: what figures depend on, written beside them; run again it gives the same table, or says why not."""

import json

import pandas as pd
import pytest
from tests.bench.test_runner import Counting, cohort_of, fits  # noqa: F401  a fixture that cleans up after it
from tests.models.conftest import GENES, make_section

from histoflow import bench, models
from histoflow._errors import HistoflowWarning, OptionError, ProtocolError, ReadError
from histoflow._keys import EMBEDDINGS, UNS
from histoflow.models import Auto, MeanBaseline, RidgeProbe, STFlow
from histoflow.pp import Panel

PANEL = Panel(tuple(GENES[:4]))
CHOSEN = {
    "mean": MeanBaseline(),
    "ridge": RidgeProbe("hest"),
    "auto": Auto({"a": MeanBaseline(), "b": RidgeProbe("hest")}),
}


@pytest.fixture(scope="module")
def sections():
    made = [make_section(f"S{i}", seed=i, n_spots=40) for i in range(4)]
    for section, order in zip(made, (1, 2, 4, 8), strict=True):
        section.uns[UNS] |= {"patient": "P", "block": "B", "order": order}
    return made


@pytest.fixture(scope="module")
def evaluated(sections, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    options = {"panel": 3, "normalize": "none", "min_counts": 30, "seeds": (0, 2), "out": out}
    return out, bench.run(sections, models=CHOSEN, **options)


def test_a_protocol_run_again_gives_the_same_table(sections, evaluated, tmp_path):
    out, table = evaluated
    again = bench.rerun(out / "protocol.json", sections, out=tmp_path)
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs == table.attrs
    assert (tmp_path / "protocol.json").read_text() == (out / "protocol.json").read_text()


def test_it_states_what_the_figures_depend_on(sections, evaluated):
    out, table = evaluated
    told = json.loads((out / "protocol.json").read_text())
    assert (told["dataset"], told["by"], told["normalize"], told["min_counts"]) == ("sections", "section", "none", 30)
    assert told["seeds"] == [0, 2]
    assert told["n_spots_left_out"] == table.attrs["n_spots_left_out"]
    fold = told["folds"][0]
    assert (fold["name"], fold["train"], fold["test"]) == ("S0", ["S1", "S2", "S3"], ["S0"])
    assert fold["shares"] == "adjacent serial sections of one block: optimistic"
    assert [(f["kind"], f["sections"], f["refuses"]) for f in fold["findings"]] == [("serial", ["S0", "S1"], False)]
    genes = table[(table["fold"] == "S0") & (table["gene"] != "")]["gene"].unique()
    assert fold["panel"] == {"rule": "variance", "hash": table.attrs["panels"]["S0"]["hash"], "genes": list(genes)}
    assert told["models"]["ridge"]["options"]["protocol"] == "hest"
    assert set(told["models"]["auto"]["candidates"]) == {"a", "b"}
    assert told["embeddings"]["scatter"]["id"] == "a" * 12
    assert told["sections"]["S3"]["order"] == 8
    assert told["ceiling"]["seed"] == 0
    assert {"histoflow", "torch", "numpy", "scikit-learn", "anndata", "python"} <= set(told["versions"])


def test_a_fixed_panel_areas_and_roles_come_back(sections, tmp_path):
    by = bench.Areas(n_areas=2, buffer_um=400)
    table = bench.run(sections[:2], models={"m": MeanBaseline()}, by=by, panel=PANEL, out=tmp_path / "areas")
    told = bench.read_protocol(tmp_path / "areas")
    assert bench.options_of(told) == {"by": by, "panel": PANEL, "normalize": "library", "min_counts": 0, "seeds": (0,)}
    pd.testing.assert_frame_equal(bench.rerun(told, sections[:2]), table)
    cohort = cohort_of(sections, ["reference", "held_out", "reference", "reference"])
    table = bench.run(cohort, models={"m": MeanBaseline()}, panel=PANEL, out=tmp_path / "roles")
    pd.testing.assert_frame_equal(bench.rerun(tmp_path / "roles", cohort), table)
    with pytest.raises(ProtocolError, match="section S1 has other role; give the same data, or evaluate anew"):
        bench.rerun(tmp_path / "roles", sections)


def test_options_survive_as_the_estimator_takes_them(sections, tmp_path):
    flow = STFlow(network=models.Network(n_layers=1, hidden_dim=8), training=models.Training(max_epochs=1), seed=3)
    bench.run(sections[:2], models={"flow": Counting(shift=0.5)}, panel=PANEL, out=tmp_path)
    told = bench.read_protocol(tmp_path)
    with pytest.raises(OptionError, match="model is 'counting'; choose one of"):
        bench.models_of(told)
    bench.rerun(told, sections[:2], models={"flow": Counting(shift=0.5)})
    with pytest.raises(ProtocolError, match="not those of the protocol: model flow; use the same files"):
        bench.rerun(told, sections[:2], models={"flow": Counting(shift=0.6)})
    told["models"] = {"flow": {"estimator": "stflow", "options": flow.options()}}
    assert bench.models_of(told)["flow"].options() == flow.options()


def one_count(section):
    section.X[0, 1] += 1


def place(section):
    section.obsm["spatial_um"] = section.obsm["spatial_um"] + 1.0


def name(section):
    section.obs_names = [f"new-{spot}" for spot in section.obs_names]


def patient(section):
    section.uns[UNS]["patient"] = "Q"


def slide(section):
    section.uns[UNS]["slide_id"] = "other"


def pitch(section):
    section.uns[UNS]["pitch_um"] = 100.0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (one_count, "counts"),
        (place, "places"),
        (name, "names"),
        (patient, "patient"),
        (slide, "slide"),
        (pitch, "scale"),
    ],
)
def test_other_data_are_refused_by_name(sections, evaluated, change, what):
    changed = [section.copy() for section in sections]
    for section in changed:
        section.uns[UNS] = dict(section.uns[UNS])
    change(changed[2])
    with pytest.raises(ProtocolError, match=f"not the one of the protocol: section S2 has other {what}; give the same"):
        bench.rerun(evaluated[0], changed)


def test_other_sections_embeddings_and_answers_to_missing_genes_are_refused(sections, evaluated):
    with pytest.raises(ProtocolError, match="section S3 is not in the cohort; give the same data"):
        bench.rerun(evaluated[0], sections[:3])
    with pytest.raises(ProtocolError, match="section S9 is not in the protocol"):
        bench.rerun(evaluated[0], [*sections, make_section("S9", seed=9)])
    embedded = [section.copy() for section in sections]
    for section in embedded:
        made = section.uns[UNS][EMBEDDINGS]
        section.uns[UNS] = section.uns[UNS] | {EMBEDDINGS: made | {"scatter": made["scatter"] | {"id": "b" * 12}}}
    with pytest.raises(ProtocolError, match="not those of the protocol: embeddings scatter; use the same files"):
        bench.rerun(evaluated[0], embedded)
    cohort = cohort_of(sections, ["reference"] * 4)
    cohort.missing = "zero"
    with pytest.raises(ProtocolError, match="missing is 'zero' and was 'error'"):
        bench.rerun(evaluated[0], cohort)


def test_other_genes_from_the_same_data_are_told(sections, evaluated):
    told = bench.read_protocol(evaluated[0])
    told |= {"models": {"mean": told["models"]["mean"]}, "embeddings": {}}
    told["folds"][1]["panel"]["hash"] = "0" * 12
    with pytest.warns(HistoflowWarning, match="the panels are not those of the protocol"):
        bench.rerun(told, sections)


def test_what_is_no_protocol_is_told(tmp_path):
    with pytest.raises(ReadError, match="cannot read"):
        bench.read_protocol(tmp_path)
    for text in ("[]", '{"format": 2}', '{"format": 1}'):
        (tmp_path / "protocol.json").write_text(text)
        with pytest.raises(ProtocolError, match=r"is not a protocol of format 1 .*; give the protocol.json of an"):
            bench.read_protocol(tmp_path)

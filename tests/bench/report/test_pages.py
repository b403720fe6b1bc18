"""The pages as text: every name is text, the policy is of its own scripts, and what has to be said is said."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from tests.bench import invented

from histoflow._errors import MissingDependencyError, MissingSlotError, ReadError
from histoflow._keys import UNS
from histoflow.bench.report import Picture, cautions, evaluation_page, maps, page, prediction_page, scores, words
from histoflow.bench.report.evaluation import verdict
from histoflow.bench.report.page import as_script_data
from histoflow.bench.report.scores import Score

MOST_BYTES = 15_000_000


class Elements(HTMLParser):
    """Counts elements, and keeps scripts and the text of the rest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.policy = {}, [], "", ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self._in = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"]

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            attrs, so_far = self.scripts[-1]
            self.scripts[-1] = (attrs, so_far + data)
        elif self._in != "style":
            self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0][1])


@pytest.fixture(scope="module")
def made():
    protocol = {
        "min_counts": 500,
        "n_spots_left_out": 7,
        "normalize": "library",
        "versions": {"histoflow": "9.9"},
        "models": {"hest_fm": {"estimator": "hest_fm", "options": {"protocol": "grouped-cv", "alphas": None}}},
        "folds": [
            {
                "name": section,
                "train": ["T<1>"],
                "test": [section],
                "findings": [{"sentence": "the slides <overlap>"}],
                "panel": {"rule": "variance", "hash": "beef", "genes": []},
            }
            for section in invented.SECTIONS
        ],
    }
    return evaluation_page(invented.table(), invented.read, protocol=protocol, source="/a/<b>/c")


@pytest.fixture(scope="module")
def parsed(made):
    return Elements(made)


def score(model, kind="model", **by_section):
    return Score(model, kind, by_section, (), {})


def test_names_are_text_wherever_they_stand(parsed):
    assert parsed.tags["script"] == 3
    assert parsed.tags.get("img", 0) == 0
    assert parsed.tags.get("b", 0) == parsed.tags.get("i", 0) == 0
    assert "An audit of the folds found: the slides <overlap>." in parsed.text
    for name in ("mine & yours", invented.SECTIONS[0], "best<i>", "/a/<b>/c", "T<1>", "the slides <overlap>"):
        assert name in parsed.text
    assert parsed.data["genes"]["best<i>"]["genes"][0] == "EPCAM"
    assert set(parsed.data["sections"][0]["genes"]) == set(invented.GENES)


def test_data_cannot_end_its_element():
    hostile = {"</script><script>": "<!--", "&": "\u2028\u2029"}
    written = as_script_data(hostile)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == hostile
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_script_data([float("nan")])


def test_the_policy_allows_the_pages_own_scripts_and_no_request(parsed):
    run = [text for attrs, text in parsed.scripts if "type" not in attrs]
    assert len(run) == 2
    for text in run:
        assert f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in parsed.policy
    assert parsed.policy.startswith("default-src 'none'; ")
    assert "http" not in parsed.policy
    assert "unsafe-eval" not in parsed.policy


def test_nothing_in_the_page_points_outside(made):
    own = re.sub(r"<script>.*?</script>", "", made, flags=re.S)
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", own)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(" not in own


def test_it_stays_small(made):
    assert len(made.encode()) < MOST_BYTES


def test_how_it_was_done_is_told(parsed):
    for told in (
        *("best<i>", "log1p of counts per 10,000: each spot's counts", "with at least 500 counts; 7 left out"),
        *("7 genes, rule variance, hash 0123456789ab", "scatter 2, patches of 112 and 224 µm", "BSD-3-Clause"),
        *("histoflow 9.9", "mine & yours; held out by section", "protocol grouped-cv", "7, hash beef"),
    ):
        assert told in parsed.text


def test_without_a_record_predictions_say_what_they_were_trained_on():
    text = Elements(evaluation_page(invented.table(), invented.read)).text
    assert "trained on" in text
    assert "options of" not in text
    assert "with at least" not in text


def test_an_older_table_makes_a_page_without_intervals():
    text = Elements(evaluation_page(invented.table(truth=False), lambda *a: invented.prediction(a[1], a[2]))).text
    assert "None of these models gives intervals" in text
    assert "share of ceiling" not in text


def test_a_page_without_any_prediction_says_so():
    def nothing(*_):
        raise ReadError("the folder is empty")

    parsed = Elements(evaluation_page(invented.table(), nothing))
    assert "There is no map of best<i> on" in parsed.text
    assert "the folder is empty" in parsed.text
    assert parsed.data["sections"] == []


def test_a_table_in_which_everything_failed_makes_a_page():
    table = invented.table(truth=False)
    table = table[(table["model"] == "hest_fm") & (table["metric"] == "pearson")].assign(value=np.nan, error="no luck")
    parsed = Elements(evaluation_page(table, invented.read))
    assert "No model but baselines was scored." in parsed.text
    assert "hest_fm could not be scored on" in parsed.text
    assert "no luck" in parsed.text


def test_areas_of_one_section_go_by_their_folds():
    table = invented.table(["S2"], truth=False)
    areas = pd.concat([table.assign(fold=f"S2-area{number}") for number in (1, 2)])
    asked = []

    def area(fold, section, model, seed):
        asked.append((fold, section))
        return invented.prediction("S2", model)

    picture = Picture(invented.white_jpeg(), (0.0, 1.0, 0.0, 1.0))
    parsed = Elements(evaluation_page(areas, area, pictures={"S2": picture}))
    assert [section["name"] for section in parsed.data["sections"]] == ["S2-area1", "S2-area2"]
    assert all(section["picture"] for section in parsed.data["sections"])
    assert set(parsed.data["genes"]["best<i>"]["by_section"]) == {"S2-area1", "S2-area2"}
    assert set(asked) == {("S2-area1", "S2"), ("S2-area2", "S2")}


def test_very_many_genes_are_cut_and_it_is_said(monkeypatch):
    monkeypatch.setattr(scores, "MOST_ROWS", 3)
    monkeypatch.setattr(maps, "MOST_GENES", 2)
    parsed = Elements(evaluation_page(invented.table(), invented.read))
    assert len(parsed.data["genes"]["best<i>"]["genes"]) == 3
    assert "4 more genes are in results.parquet" in parsed.text
    assert parsed.data["sections"][0]["genes"] == ["EPCAM", invented.FLAT]  # the best and the worst
    of_prediction = Elements(prediction_page(without_counts()))
    assert len(of_prediction.data["genes"]["best<i>"]["genes"]) == 3
    assert "4 more genes are in the file" in of_prediction.text
    assert "2 of 7 genes are offered" in of_prediction.text


def test_several_seeds_are_told():
    table = invented.table()
    text = Elements(evaluation_page(pd.concat([table, table.assign(seed=3)]), invented.read)).text
    assert "Figures are means over the seeds 0, 3; the maps are of seed 0." in text


# The answer


def test_the_best_model_is_the_answer_with_its_lead():
    found = [score("x", A=0.5, B=0.4), score("y", A=0.4, B=0.3), score("color", "baseline", A=0.3, B=0.35)]
    answer = verdict(found)
    assert answer["headline"] == "Use x."
    assert answer["reasons"] == [
        "Its mean r over the genes is 0.450, averaged over 2 sections held out.",
        "It is 0.125 ahead of the best baseline, color (0.325), and better on every section.",
        "It is 0.100 ahead of the next model, y (0.350), and better on every section.",
    ]


def test_an_order_that_sections_do_not_agree_on_is_doubted():
    answer = verdict([score("x", A=0.9, B=0.4), score("y", A=0.5, B=0.5), score("mean", "baseline", A=0.0, B=0.0)])
    assert answer["reasons"][2].endswith("and better on 1 of 2 sections: the order of the two may be chance.")


def test_no_model_is_recommended_over_a_better_baseline():
    answer = verdict([score("color", "baseline", A=0.5), score("x", A=0.4)])
    assert answer["headline"] == "No model is better than the baseline color."
    assert "x, reaches a mean r of 0.400 on 1 section; the baseline reaches 0.500" in answer["reasons"][0]


def test_an_oracle_is_never_the_answer():
    answer = verdict([score(invented.ORACLE, "oracle", A=0.9), score("x", A=0.4), score("mean", "baseline", A=0.0)])
    assert answer["headline"] == "Use x."


# Warnings


def test_warnings_are_plain_sentences(parsed):
    for told in (
        "What held-out and training parts share: adjacent serial sections of one block (optimistic): neighbouring "
        "slices of one tissue look alike; nothing here says how well it does on another patient.",
        "2 sections were held out, too few for an interval around the means",
        "Intervals of best<i> are too narrow: those of 80 % hold 60 % of the measured values.",
        "r of best<i> is not defined for NIL on some section",
        f"3 of 40 on {invented.SECTIONS[0]}, 3 of 40 on S2",
        f"There is no map of color on {invented.SECTIONS[0]}, S2: there is no prediction of color.",
        "There is no picture of the tissue of",
    ):
        assert told in parsed.text


@pytest.mark.parametrize(
    ("observed", "told"),
    [(0.80, None), (0.85, None), (0.69, "too narrow: those of 80 % hold 69 %"), (0.95, "too wide: those of 80 % hold")],
)
def test_intervals_are_warned_of_when_they_are_off_by_more_than_ten_points(observed, told):
    found = cautions._of_coverage({"m": [{"level": 0.8, "observed": observed, "by_section": {}}]})
    assert [told in text for text in found] == ([] if told is None else [True])


def test_labels_of_what_is_shared_have_a_meaning_each():
    table = invented.table()
    for label, meaning in {
        "same section: optimistic": "nothing here says how well it does on another section",
        "same patient, another block": "nothing here says how well it does on another patient",
        "patient not stated": "state the patient of every section",
        "same study, another patient": "another laboratory",
        "another patient, another study": "another patient, another study.",
    }.items():
        (told,) = cautions._of_split(table.assign(shares=label))
        assert meaning in told


def test_enough_sections_need_no_warning_of_their_number():
    five = pd.concat([invented.table().assign(section=f"T{i}") for i in range(5)])
    assert cautions._of_number(five) == []
    assert cautions._of_number(invented.table(["S2"]))[0].startswith("One section was held out")


def test_flat_maps_and_differing_panels_are_told():
    table = invented.table(truth=False)
    flat = table.assign(value=table["value"].where(table["metric"] != "variance_ratio", 0.31))
    chosen = score("best<i>", A=0.5)
    assert "their variance is 0.31 of the measured one" in cautions._of_flatness(flat, chosen)[0]
    assert cautions._of_flatness(table[table["metric"] == "pearson"], chosen) == []
    differing = table[(table["fold"] != "S2") | (table["gene"] != "CD3E")]
    assert "7 genes in all, of which 6 are in every fold" in cautions._of_panels(differing)[0]
    assert cautions._of_panels(table) == []


# A prediction


def without_counts():
    made = invented.prediction("S2")
    del made.layers["measured"]
    return made


def test_a_prediction_says_what_it_is_and_what_it_cannot_tell():
    text = Elements(prediction_page(without_counts(), no_picture="the slide is gone", source="p.h5ad")).text
    for told in (
        *("A prediction, not a measurement", "best<i> predicted 7 genes at 40 places from the slide alone."),
        *("There are no counts here to check against", "The maps are drawn without tissue: the slide is gone."),
        *(
            "how sure it is of a place is not known",
            "has not been checked",
            invented.SECTIONS[0],
            "BSD-3-Clause",
            "p.h5ad",
        ),
    ):
        assert told in text


def test_what_is_known_of_its_genes_is_told_best_first():
    made = without_counts()
    made.var["held_out_r"] = [0.1, 0.7, np.nan, 0.3, 0.2, 0.25, -0.1]
    parsed = Elements(prediction_page(made))
    rows = parsed.data["genes"]["best<i>"]
    assert rows["genes"][:2] == [invented.TAG, invented.GENES[3]]
    assert rows["metrics"]["held_out_r"][:2] == [0.7, 0.3]
    assert "its mean r over these genes was 0.207" in parsed.text
    assert [column["key"] for column in parsed.data["columns"]] == ["held_out_r", "mean", "sd"]


def test_a_calibrated_prediction_carries_its_widths_and_no_warning_of_them():
    parsed = Elements(prediction_page(invented.calibrated(without_counts())))
    assert parsed.data["genes"]["best<i>"]["metrics"]["width"] == [1.25] * 7
    assert "is not known" not in parsed.text
    assert "has not been checked" not in parsed.text
    assert "3 of 40 on S2" in parsed.text


def test_draws_are_no_interval():
    made = without_counts()
    made.layers["std"] = np.full(made.shape, 0.1)
    assert "the spread of its draws is no interval" in Elements(prediction_page(made)).text


def test_something_else_than_a_prediction_is_refused():
    made = without_counts()
    del made.uns[UNS]["method"]
    with pytest.raises(MissingSlotError, match="give a prediction of histoflow predict"):
        prediction_page(made)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(page, "import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"plotly is not installed: pip install 'histoflow\[report\]'"):
        page.check_library()


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (None, "–"), (float("nan"), "–")]
)
def test_numbers_are_written_for_people(value, text):
    assert words.number(value) == text


def test_long_lists_are_cut():
    assert words.listed(["A", "B", "C"], 3) == "A, B, C"
    assert words.listed(["A", "B", "C"], 1) == "A and 2 more"

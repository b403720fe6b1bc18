"""Out-of-fold predictions, and the choice among estimators that is made by them."""

import numpy as np
import pytest
from scipy import sparse
from tests.models.conftest import GENES, make_section

from histoflow import bench, models
from histoflow._errors import OptionError, SplitError, TrainingWarning
from histoflow.bench import shuffle_counts
from histoflow.models import Auto, MeanBaseline, RidgeProbe, cross_fit, training_folds
from histoflow.pp import Panel, panel_log1p
from histoflow.stats import pearson

PANEL = Panel(tuple(GENES))


@pytest.fixture(scope="module")
def four():
    return [make_section(f"S{i}", seed=i) for i in range(4)]


def test_every_section_is_predicted_by_a_model_of_the_others(four):
    found = cross_fit(RidgeProbe(), four, training_folds(four), panel=PANEL)
    assert found.how == "4 folds of whole sections"
    for i, section in enumerate(four):
        alone = RidgeProbe().fit([s for s in four if s is not section], panel=PANEL).predict(section)
        own = found.section == f"S{i}"
        np.testing.assert_array_equal(found.predicted[own], alone.X)
        np.testing.assert_allclose(found.measured[own], panel_log1p(section, PANEL, "library"), rtol=1e-6)
        np.testing.assert_allclose(found.r_by_section().loc[f"S{i}"], pearson(found.measured[own], alone.X), rtol=1e-6)
    assert found.mean_r() == pytest.approx(found.r_by_section().to_numpy().mean())
    assert found.held_out_r() == pytest.approx(found.r_by_section().mean().to_dict())
    assert found.skill() > 0.2


def test_a_gene_that_does_not_vary_counts_as_nothing(four):
    flat = [section.copy() for section in four]
    for section in flat:
        section.X = section.X @ sparse.diags([0.0, 1, 1, 1, 1, 1]).tocsr()
    found = cross_fit(RidgeProbe(), flat, training_folds(flat), panel=PANEL)
    assert found.held_out_r()["G0"] == 0
    assert found.mean_r() == pytest.approx(np.nan_to_num(found.r_by_section().to_numpy()).mean())


def test_one_section_is_held_out_by_blocks_that_share_no_spot():
    section = make_section("S", seed=0, n_spots=144)
    with pytest.warns(TrainingWarning, match="4 spatial blocks"):
        folds = training_folds([section])
    found = cross_fit(RidgeProbe(), [section], folds, panel=PANEL)
    assert len(found.predicted) == 144
    for train, test in folds.folds:
        assert not set(train) & set(test)


def test_the_best_candidate_is_chosen_and_fitted_on_everything(four):
    fitted = Auto({"mean": MeanBaseline(), "hest_fm": RidgeProbe()}).fit(four, panel=PANEL)
    told = fitted.training_["auto"]
    assert (fitted.name, told["chosen"], fitted.training_["sections"]) == (
        "hest_fm",
        "hest_fm",
        ["S0", "S1", "S2", "S3"],
    )
    assert [row["model"] for row in told["rows"]] == ["hest_fm", "mean"]
    assert told["ahead_by"] == pytest.approx(told["rows"][0]["mean_r"] - told["rows"][1]["mean_r"])
    assert told["rows"][1]["mean_r"] == 0
    plain = RidgeProbe().fit(four, panel=PANEL)
    query = make_section("Q", seed=9)
    predicted = fitted.predict(query)
    np.testing.assert_array_equal(predicted.X, plain.predict(query).X)
    found = cross_fit(RidgeProbe(), four, training_folds(four), panel=PANEL)
    assert predicted.var["held_out_r"].to_dict() == pytest.approx(found.held_out_r())


def test_where_there_is_nothing_to_find_the_mean_may_win(four):
    shuffled = [shuffle_counts(section, seed=3) for section in four]
    fitted = Auto({"hest_fm": RidgeProbe(), "mean": MeanBaseline()}).fit(shuffled, panel=PANEL)
    best = max(row["mean_r"] for row in fitted.training_["auto"]["rows"])
    assert best < 0.15
    assert fitted.training_["auto"]["rows"][0]["mean_r"] == best


def test_the_table_is_saved_with_the_model(four, tmp_path):
    fitted = Auto({"mean": MeanBaseline(), "hest_fm": RidgeProbe()}).fit(four, panel=PANEL)
    fitted.save(tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert loaded.training_["auto"] == fitted.training_["auto"]
    told = models.auto_sentence(loaded.training_["auto"])
    assert told.startswith("auto chose hest_fm: mean r 0.")
    assert "on 4 folds of whole sections of the training data, ahead of mean by 0." in told


def test_the_choice_is_scored_like_an_estimator(four):
    choice = Auto({"mean": MeanBaseline(), "hest_fm": RidgeProbe()})
    table = bench.run(four, models={"auto": choice, "hest_fm": RidgeProbe()}, panel=PANEL, normalize="none")
    scores = table[table["metric"] == "pearson"].groupby("model")["value"].mean()
    assert scores["auto"] == pytest.approx(scores["hest_fm"])


def test_choices_that_cannot_be_made(four):
    with pytest.raises(OptionError, match="auto has no candidates"):
        Auto({}).fit(four, panel=PANEL)
    few = make_section("S", seed=0, n_spots=9)
    with pytest.raises(SplitError, match="choose a model by name"), pytest.warns(TrainingWarning):
        Auto({"mean": MeanBaseline()}).fit([few], panel=PANEL)


def test_candidates_without_a_slide_look_through_the_given_features_alone():
    names = set(models.auto(encoder="uni", looks_at_slides=False).candidates)
    assert "color" not in names
    assert {"mean", "hest_fm", "stflow"} <= names
    assert {one.encoder for one in models.auto(encoder="uni", seed=3).candidates.values()} == {None, "uni", "color"}
    assert models.auto(seed=3).seed == 3

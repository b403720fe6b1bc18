"""Ceilings in the table: of the data alone, once for a fold's section, and what models reach of them."""

import numpy as np
import pytest
from scipy import sparse
from tests.models.conftest import GENES, make_section

from histoflow import bench
from histoflow.models import MeanBaseline, RidgeProbe
from histoflow.pp import Panel

PANEL = Panel(tuple(GENES[:4]))


@pytest.fixture
def sections():
    made = [make_section(f"S{i}", seed=i, n_spots=200) for i in range(4)]
    for section in made:  # a gene without anything but noise
        counts = section.X.toarray()
        counts[:, 3] = np.random.default_rng(1).poisson(3.0, len(counts))
        section.X = sparse.csr_matrix(counts)
    return made


def test_ceilings_stand_once_and_do_not_depend_on_the_models(sections):
    chosen = {"mean": MeanBaseline(), "ridge": RidgeProbe("hest")}
    both, one = (
        bench.run(sections, models=m, panel=PANEL, normalize="none") for m in (chosen, {"mean": MeanBaseline()})
    )
    rows, alone = (t[t["model"] == bench.CEILING_MODEL].reset_index(drop=True) for t in (both, one))
    assert rows.drop(columns="value").equals(alone.drop(columns="value"))
    np.testing.assert_array_equal(rows["value"], alone["value"])
    values = rows.set_index(["section", "metric", "gene"])["value"].sort_index()
    direct = bench.noise_ceiling(sections[2], PANEL, normalize="none")
    stable = values["S2", "ceiling_stable"][list(PANEL.genes)]
    np.testing.assert_array_equal(stable, direct.stable.astype(float))
    assert list(stable) == [1, 1, 1, 0]
    np.testing.assert_array_equal(values["S2", "ceiling"][list(PANEL.genes)[:3]], direct.ceiling[:3])
    assert np.isnan(values["S2", "ceiling", GENES[3]])


def test_a_share_is_r_over_the_ceiling_and_undefined_r_is_none(sections):
    table = bench.run(
        sections, models={"mean": MeanBaseline(), "ridge": RidgeProbe("hest")}, panel=PANEL, normalize="none"
    )
    of = table[table["section"] == "S1"].set_index(["model", "metric", "gene"])["value"].sort_index()
    genes = list(PANEL.genes[:3])
    wanted = of["ridge", "pearson"][genes] / of[bench.CEILING_MODEL, "ceiling"][genes]
    np.testing.assert_allclose(of["ridge", "share_of_ceiling"][genes], wanted)
    assert list(of["mean", "share_of_ceiling"][genes]) == [0, 0, 0]
    assert np.isnan(of["ridge", "share_of_ceiling"][GENES[3]])


def test_thinned_counts_are_brought_to_the_scale_of_all(sections):
    scaled = {n: bench.noise_ceiling(sections[0], PANEL, normalize=n) for n in ("library", "none")}
    assert not np.allclose(scaled["library"].ceiling[:3], scaled["none"].ceiling[:3])
    for found in scaled.values():
        assert ((found.ceiling > 0.3) & (found.ceiling <= 1))[:3].all()

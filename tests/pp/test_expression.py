"""Panels and scales: the panel rule line by line, scanpy as the oracle, no regard to the order of spots."""

import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from histoflow._errors import (
    GeneNamesWarning,
    MissingDependencyError,
    MissingSlotError,
    OptionError,
    PanelMismatchError,
)
from histoflow.pp.expression import (
    Panel,
    check_normalize,
    choose_panel,
    keep_spots,
    library_size,
    missing_genes,
    panel_counts,
    panel_log1p,
    to_log1p,
)

XY_UM = np.stack(np.meshgrid(np.arange(8), np.arange(5)), axis=-1).reshape(-1, 2) * 100.0


def section(counts, genes=None, *, name="S1", spots=None):
    """A section on an 8 x 5 lattice (as many spots as there are counts), raw counts."""
    counts = np.asarray(counts, dtype=np.float32)
    genes = genes or [f"G{i:02d}" for i in range(counts.shape[1])]
    obs = pd.DataFrame(index=spots or [f"spot{i}" for i in range(len(counts))])
    made = AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(genes)))
    made.obsm["spatial_um"] = XY_UM[: len(counts)]
    made.uns["histoflow"] = {"section": name}
    return made


def poisson(seed, n_genes=12, n_spots=40):
    rng = np.random.default_rng(seed)
    depth = rng.lognormal(0, 0.5, (n_spots, 1))
    return rng.poisson(depth * rng.lognormal(1.5, 1, n_genes) * rng.lognormal(0, 0.4, (n_spots, n_genes))) + np.eye(
        n_spots, n_genes
    )


TWO = [section(poisson(0)), section(poisson(1), name="S2")]


def columns(**genes):
    """A section from one list of counts per gene."""
    return section(np.array(list(genes.values())).T, list(genes))


def scanpy_log1p(one, genes):
    """Counts per 10,000 and log1p by scanpy itself."""
    import scanpy as sc

    normalised = one.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    return normalised[:, list(genes)].X.toarray()


# Scales


def test_library_scale_is_scanpys():
    panel = Panel(("G03", "G00", "G11"))
    np.testing.assert_allclose(panel_log1p(TWO[0], panel, "library"), scanpy_log1p(TWO[0], panel.genes), rtol=1e-6)


def test_raw_scale_is_log1p_of_the_counts_in_the_order_of_the_panel():
    panel = Panel(("G03", "G00"))
    measured = panel_log1p(TWO[0], panel, "none")
    assert measured.dtype == np.float32
    np.testing.assert_array_equal(measured, np.log1p(TWO[0].X.toarray()[:, [3, 0]].astype(float)).astype(np.float32))


def test_library_size_counts_every_gene_of_the_table_also_those_outside_the_panel():
    one = columns(A=[1, 2], B=[9, 0])
    np.testing.assert_array_equal(library_size(one), [10, 2])
    np.testing.assert_allclose(panel_log1p(one, Panel(("A",)), "library"), np.log1p([[1e3], [1e4]]), rtol=1e-6)


def test_a_spot_without_counts_is_zero():
    one = columns(A=[0, 2], B=[0, 2])
    assert panel_log1p(one, Panel(("A", "B")), "library")[0].tolist() == [0, 0]


def test_dense_and_sparse_counts_are_the_same():
    dense = TWO[0].copy()
    dense.X = dense.X.toarray()
    panel = Panel(("G05", "G01"))
    np.testing.assert_array_equal(panel_counts(dense, panel), panel_counts(TWO[0], panel))
    assert choose_panel([dense], 4) == choose_panel(TWO[:1], 4)


def test_counts_of_a_part_of_the_genes_need_the_totals_of_all():
    np.testing.assert_allclose(to_log1p(np.array([[5.0]]), np.array([50.0]), "library"), np.log1p([[1000.0]]))


def test_spots_with_few_counts_are_left_out():
    one = columns(A=[4, 5, 6], B=[0, 0, 0])
    assert keep_spots(one, min_counts=5).obs_names.tolist() == ["spot1", "spot2"]
    assert keep_spots(one, min_counts=0) is one
    assert one.n_obs == 3


# The panel itself


def test_hash_knows_genes_and_their_order_and_not_the_rule():
    assert Panel(("A", "B")).hash == Panel(("A", "B"), "variance").hash
    hashes = {Panel(genes).hash for genes in [("A", "B"), ("B", "A"), ("A",), ("AB",)]}
    assert len(hashes) == 4
    assert all(len(one) == 12 and int(one, 16) >= 0 for one in hashes)
    assert len(Panel(("A", "B"))) == 2


@pytest.mark.parametrize(
    ("genes", "text"), [((), "the panel is empty"), (("A", "B", "A", "C", "C"), "the panel names A, C more than once")]
)
def test_empty_panels_and_repeated_genes_are_refused(genes, text):
    with pytest.raises(PanelMismatchError, match=text):
        Panel(genes)


# The rule


def test_ranked_by_the_variance_over_all_spots_pooled_on_the_models_scale():
    genes = [f"G{i:02d}" for i in range(12)]
    library = np.concatenate([scanpy_log1p(one, genes) for one in TWO]).astype(float)
    raw = np.log1p(np.concatenate([one.X.toarray() for one in TWO]).astype(float))
    expected = {k: tuple(np.array(genes)[np.argsort(-v.var(0))]) for k, v in (("library", library), ("none", raw))}
    assert expected["library"] != expected["none"]
    for normalize, ranked in expected.items():
        assert choose_panel(TWO, 5, normalize=normalize) == Panel(ranked[:5], "variance")


def test_pooling_sees_a_difference_between_sections():
    flat, high = columns(A=[1, 1, 1, 1], B=[1, 3, 1, 3]), columns(A=[90, 90, 90, 90], B=[1, 3, 1, 3])
    assert choose_panel([flat, high], 1, normalize="none").genes == ("A",)
    assert choose_panel([high], 1, normalize="none").genes == ("B",)


def test_ties_go_by_name_whatever_the_order_of_the_table():
    counts = {"C": [1, 9, 4, 2, 7], "A": [7, 2, 1, 9, 4], "B": [2, 4, 9, 7, 1], "low": [1, 1, 1, 1, 1]}
    for genes in (counts, dict(reversed(counts.items()))):
        assert choose_panel([columns(**genes)], 3, normalize="none").genes == ("A", "B", "C")


def test_candidates_are_measured_in_every_section():
    here, there = columns(A=[1, 5], B=[2, 9], C=[3, 4]), columns(D=[8, 1], C=[1, 2], A=[3, 3])
    assert sorted(choose_panel([here, there], 2).genes) == ["A", "C"]
    with pytest.raises(PanelMismatchError, match="3 genes were asked for, but only 2 are measured in all 2 sections"):
        choose_panel([here, there], 3)


@pytest.mark.parametrize(("n_detected", "candidate"), [(4, True), (3, False)])
def test_candidates_are_detected_in_a_tenth_of_the_spots_of_each_section(n_detected, candidate):
    everywhere = np.full(40, 2)
    rare = np.where(np.arange(40) < n_detected, 50, 0)
    sections = [columns(A=everywhere, rare=everywhere), columns(A=everywhere, rare=rare)]
    assert set(choose_panel(sections, 1 + candidate).genes) == ({"A", "rare"} if candidate else {"A"})
    with pytest.raises(PanelMismatchError, match="detected in 10% of the spots of each"):
        choose_panel(sections, 2 + candidate)


def test_only_the_spots_kept_count_for_detection():
    one = columns(A=[30] * 8 + [1] * 32, B=[2, 5] + [0] * 38)
    with pytest.raises(PanelMismatchError, match="only 1 are measured"):
        choose_panel([one], 2)
    assert set(choose_panel([keep_spots(one, min_counts=5)], 2).genes) == {"A", "B"}


MITOCHONDRIAL, RIBOSOMAL = ["MT-CO1", "mt-Nd1"], ["RPL3", "RPS18", "Rpl13a", "RPLP0", "RPSA"]
EXCLUDED = [*MITOCHONDRIAL, *RIBOSOMAL, "ERCC-00002", "BLANK_1", "NegControlProbe_1"]


def test_mitochondrial_ribosomal_and_control_features_are_out():
    ordinary = ["EPCAM", "MTOR", "RPTOR", "ERCC1", "TIMP1"]
    rng = np.random.default_rng(3)
    one = section(rng.poisson(50, (40, 15)) + 1, [*EXCLUDED, *ordinary])
    assert sorted(choose_panel([one], 5).genes) == sorted(ordinary)
    with pytest.raises(PanelMismatchError, match="only 5 are measured"):
        choose_panel([one], 6)
    assert sorted(choose_panel([one], 7, keep=["RPL3", "MT-CO1", "not there"]).genes) == sorted(
        [*ordinary, "MT-CO1", "RPL3"]
    )


def test_hvg_is_scanpys_choice_on_log1p_of_raw_counts():
    import scanpy as sc

    sections = [section(poisson(seed, 60)) for seed in (4, 5)]
    stacked = AnnData(np.log1p(np.concatenate([one.X.toarray() for one in sections])))
    stacked.var_names = sections[0].var_names
    sc.pp.highly_variable_genes(stacked, n_top_genes=9, flavor="seurat")
    panel = choose_panel(sections, 9, "hvg")
    assert panel.rule == "hvg"
    assert set(panel.genes) == set(stacked.var_names[stacked.var["highly_variable"]])
    assert set(panel.genes) != set(choose_panel(sections, 9).genes)
    dispersion = stacked.var["dispersions_norm"][list(panel.genes)]
    assert (np.diff(dispersion) <= 0).all()


def test_hvg_without_scanpy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(MissingDependencyError, match=r'rule="hvg" needs scanpy: pip install "histoflow\[hvg\]"'):
        choose_panel(TWO, 3, "hvg")


STRIPES = np.where(XY_UM[:, 0] // 100 % 2 == 0, 90, 1)  # six of the eight nearest spots differ
GRADIENT = 1 + XY_UM[:, 0] / 100
CONSTANT = np.full(40, 3)


def test_spatial_prefers_patterns_to_variance():
    noise = np.random.default_rng(1).permutation(40) + 1
    one = columns(stripes=STRIPES, gradient=GRADIENT, step=np.where(XY_UM[:, 1] < 200, 5, 6), noise=noise)
    ranked = choose_panel([one], 4, "spatial", normalize="none")
    assert ranked.rule == "spatial"
    assert set(ranked.genes[:2]) == {"gradient", "step"}
    assert ranked.genes[2:] == ("noise", "stripes")
    assert choose_panel([one], 1, normalize="none").genes == ("stripes",)


def test_spatial_takes_the_mean_over_sections_and_a_constant_gene_as_zero():
    sections = [columns(A=STRIPES, B=CONSTANT, C=GRADIENT), columns(A=GRADIENT, B=GRADIENT, C=GRADIENT)]
    assert choose_panel(sections, 3, "spatial", normalize="none").genes == ("C", "B", "A")


def test_spatial_needs_places():
    one = TWO[0].copy()
    del one.obsm["spatial_um"]
    with pytest.raises(MissingSlotError, match=r'section S1 has no obsm\["spatial_um"\]'):
        choose_panel([one], 3, "spatial")


@given(seed=st.integers(0, 1000), rule=st.sampled_from(["variance", "spatial"]), data=st.data())
@settings(deadline=None, max_examples=40)
def test_the_order_of_spots_genes_and_sections_changes_nothing(seed, rule, data):
    # Columns made of the same few values in other orders tie, to within rounding, on the raw scale.
    rng = np.random.default_rng(seed)
    values = rng.poisson(3, 40)
    sections = [section(np.stack([rng.permutation(values) for _ in range(8)], axis=1)) for _ in range(2)]
    genes = data.draw(st.permutations(range(8)))
    shuffled = []
    for one in sections:
        spots = data.draw(st.permutations(range(40)))
        shuffled.append(one[spots, genes].copy())
    swapped = shuffled[::-1]
    for normalize in ("library", "none"):
        expected = choose_panel(sections, 5, rule, normalize=normalize)
        assert choose_panel(shuffled, 5, rule, normalize=normalize) == expected
        assert choose_panel(swapped, 5, rule, normalize=normalize) == expected


def test_sections_stay_as_they_were():
    one = section(poisson(0))
    for rule in ("variance", "spatial", "hvg"):
        choose_panel([one], 4, rule)
    np.testing.assert_array_equal(one.X.toarray(), poisson(0))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"rule": "moran"}, OptionError, "rule='moran' is not offered; choose from variance, hvg, spatial"),
        ({"normalize": "cpm"}, OptionError, "normalize='cpm' is not offered; choose from library, none"),
        ({"normalize": "cpm", "rule": "hvg"}, OptionError, "normalize='cpm' is not offered"),
        ({"n_genes": 0}, OptionError, "n_genes is 0; ask for at least 1 gene"),
        ({"n_genes": -3}, OptionError, "n_genes is -3; ask for at least 1 gene"),
        ({"n_genes": 13}, PanelMismatchError, "13 genes were asked for, but only 12 are measured in all 2 sections"),
        ({"sections": []}, PanelMismatchError, "no section was given to choose a panel from; pass at least one"),
        ({"sections": [AnnData(obs=pd.DataFrame(index=["a"]))]}, MissingSlotError, "has no X"),
    ],
)
def test_wrong_wishes_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        choose_panel(**{"sections": TWO, "n_genes": 4} | arguments)


def test_only_offered_scales_pass():
    assert [check_normalize(name) for name in ("library", "none")] == ["library", "none"]


def test_genes_that_were_not_measured_are_not_zero():
    panel = Panel(("G01", *(f"new{i}" for i in range(7))))
    with pytest.raises(PanelMismatchError, match=r"section S2 lacks 7 of the panel's 8 genes \(new0, .*, new4 …\)"):
        panel_log1p(TWO[1], panel, "library")


# Genes that a table lacks


def test_a_trimmed_gene_is_zero_where_that_is_stated_and_told():
    panel = Panel(("new1", "G03", "new2", "G00"))
    with pytest.warns(
        GeneNamesWarning, match=r"section S1 lacks 2 of the panel's 4 genes \(new1, new2\); they are taken"
    ):
        counts = panel_counts(TWO[0], panel, missing="zero")
    expected = TWO[0].X.toarray()[:, [3, 3, 0, 0]] * [0, 1, 0, 1]
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype == np.float64
    assert missing_genes(TWO[0], panel) == ["new1", "new2"]


@pytest.mark.parametrize("normalize", ["library", "none"])
def test_zero_leaves_the_other_genes_and_their_library_size_as_they_were(normalize):
    with pytest.warns(GeneNamesWarning, match="lacks 1"):
        measured = panel_log1p(TWO[0], Panel(("G03", "new", "G00")), normalize, missing="zero")
    np.testing.assert_array_equal(measured[:, [0, 2]], panel_log1p(TWO[0], Panel(("G03", "G00")), normalize))
    assert (measured[:, 1] == 0).all()
    assert measured.dtype == np.float32


def test_a_complete_table_says_nothing_and_is_the_same_either_way():
    panel = Panel(("G03", "G00"))
    np.testing.assert_array_equal(panel_counts(TWO[0], panel, missing="zero"), panel_counts(TWO[0], panel))
    assert missing_genes(TWO[0], panel) == []


def test_an_error_offers_zero_and_zero_needs_one_gene_that_was_measured():
    with pytest.raises(PanelMismatchError, match="or state missing='zero' if the tables are of one chemistry"):
        panel_counts(TWO[0], Panel(("G00", "new")))
    with pytest.raises(PanelMismatchError, match=r"lacks 2 of the panel's 2 genes .* check how the genes are named"):
        panel_counts(TWO[0], Panel(("new1", "new2")), missing="zero")
    with pytest.raises(OptionError, match="missing='drop' is not offered; choose from error, zero"):
        panel_log1p(TWO[0], Panel(("G00",)), "none", missing="drop")


def test_a_panel_is_chosen_from_genes_that_every_table_holds():
    trimmed = TWO[1][:, TWO[1].var_names[3:]].copy()
    assert set(choose_panel([TWO[0], trimmed], 9).genes) <= set(trimmed.var_names)
    with pytest.raises(PanelMismatchError, match="only 9 are measured in all 2 sections"):
        choose_panel([TWO[0], trimmed], 10)

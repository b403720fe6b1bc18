"""Gene names: there and back, what has no other name is told, and human genes never meet a mouse model."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from histoflow._errors import GeneNamesWarning, MissingSlotError, OptionError, PanelMismatchError
from histoflow.io import check_species, open_section_slide, read_visium, rename_genes, section_from_anndata, species_of
from histoflow.models import RidgeProbe
from histoflow.pp import Embedder, Recipe, get_encoder

HUMAN = ["TP53", "EPCAM", "CD3E", "C1orf112", "MT-CO1", "AL627309.1", "KRT8"]
MOUSE = ["Trp53", "Epcam", "Cd3e", "Gm1234", "mt-Nd1", "Nkx2-5", "Krt8", "Hbb-bs"]


def section(names, name="S1", **columns):
    made = AnnData(csr_matrix(np.arange(2 * len(names)).reshape(2, -1).astype(np.float32)))
    made.var = pd.DataFrame(columns, index=pd.Index(list(names), dtype=object))
    made.uns["histoflow"] = {"section": name}
    return made


def ids(*numbers, prefix="ENSG"):
    return [f"{prefix}{number:011d}" for number in numbers]


# Names


def test_symbols_become_ids_without_version_and_come_back():
    before = section(["TP53", "EPCAM"], gene_ids=["ENSG00000141510.5", "ENSG00000119888.12"])
    renamed = rename_genes(before, to="ensembl")
    assert renamed.var_names.tolist() == ["ENSG00000141510", "ENSG00000119888"]
    assert renamed.var["gene_symbols"].tolist() == ["TP53", "EPCAM"]
    np.testing.assert_array_equal(renamed.X.toarray(), before.X.toarray())
    again = rename_genes(renamed, to="symbol")
    assert again.var_names.tolist() == ["TP53", "EPCAM"]
    assert again.var["gene_ids"].tolist() == ["ENSG00000141510", "ENSG00000119888"]
    assert before.var_names.tolist() == ["TP53", "EPCAM"]
    assert list(before.var) == ["gene_ids"]


def test_ids_lose_their_version_alone():
    made = section(["ENSG00000141510.5", "ENSG00000182378.14_PAR_Y", "ENSMUSG00000059552.7"])
    assert rename_genes(made, to="ensembl").var_names.tolist() == [
        "ENSG00000141510",
        "ENSG00000182378_PAR_Y",
        "ENSMUSG00000059552",
    ]


def test_names_of_the_kind_asked_for_stay_and_so_do_their_ids():
    made = section(["TP53", "EPCAM"], gene_ids=["TOYG1", "ENSG00000119888.12"])
    renamed = rename_genes(made, to="symbol")
    assert renamed.var_names.tolist() == ["TP53", "EPCAM"]
    assert renamed.var["gene_ids"].tolist() == ["TOYG1", "ENSG00000119888"]


def test_genes_without_the_other_name_keep_theirs_and_are_counted():
    made = section(["TP53", "custom", "probe"], gene_ids=[*ids(7), "custom_1", None])
    with pytest.warns(GeneNamesWarning, match=r"section S1: 2 of 3 genes have no ensembl name .* \(custom, probe\)"):
        renamed = rename_genes(made, to="ensembl")
    assert renamed.var_names.tolist() == [*ids(7), "custom", "probe"]
    unnamed = section(ids(1, 2), gene_symbols=pd.Categorical(["TP53", ids(2)[0]]))
    with pytest.warns(GeneNamesWarning, match="1 of 2 genes have no symbol name"):
        assert rename_genes(unnamed, to="symbol").var_names.tolist() == ["TP53", ids(2)[0]]


def test_ids_that_share_a_symbol_are_numbered_by_the_rule_of_the_readers():
    made = section(ids(1, 2, 3), gene_symbols=["A", "B", "A"])
    with pytest.warns(GeneNamesWarning, match="section S1: 1 gene names are repeated and got numbers, such as A-1"):
        renamed = rename_genes(made, to="symbol")
    assert renamed.var_names.tolist() == ["A", "B", "A-1"]
    assert renamed.var["gene_ids"].tolist() == ids(1, 2, 3)


def test_names_that_are_nowhere_are_asked_for():
    with pytest.raises(MissingSlotError, match=r'section S1 has no var\["gene_symbols"\].*write their symbol names'):
        rename_genes(section(ids(1, 2)), to="symbol")
    with pytest.raises(MissingSlotError, match=r'no var\["gene_ids"\]'):
        rename_genes(section(HUMAN), to="ensembl")
    with pytest.raises(OptionError, match="to is 'entrez'; choose one of symbol, ensembl"):
        rename_genes(section(HUMAN), to="entrez")


# Species


@pytest.mark.parametrize(
    ("names", "species"),
    [
        (HUMAN, "human"),
        (MOUSE, "mouse"),
        (ids(1, 2), "human"),
        (ids(1, 2, prefix="ENSMUSG"), "mouse"),
        (["ENSG00000141510.5"], "human"),
        (ids(1, 2, prefix="ENSRNOG"), "unknown"),
        ([*HUMAN[:3], *MOUSE[:3]], "unknown"),
        (["G1", "A", "7", "-"], "unknown"),
        ([], "unknown"),
        (["Cd3e"] * 4 + ["CD3E"], "mouse"),
        (["Cd3e"] * 3 + ["CD3E"], "unknown"),
        (["CD3E"] * 4 + ["Cd3e"], "human"),
        (["CD3E"] * 4 + ["Cd3e"] + ["G1"] * 9, "human"),
    ],
)
def test_a_species_is_told_by_four_fifths_of_the_names_that_can_tell(names, species):
    assert species_of(names) == species


def test_one_species_passes_and_what_is_unknown_is_not_refused():
    sections = [section(HUMAN), section(["G1", "G2"], "S2"), section(ids(4), "S3")]
    assert check_species(sections) == "human"
    assert check_species(sections, HUMAN[:2]) == "human"
    assert check_species([section(MOUSE)], ids(1, prefix="ENSMUSG")) == "mouse"
    assert check_species([section(["G1"])]) == check_species([]) == "unknown"


def test_human_genes_on_a_mouse_section_are_refused():
    with pytest.raises(
        PanelMismatchError,
        match=r"two species meet: human genes in the list of 2 asked for \(TP53, EPCAM\); mouse genes in section M "
        r"\(Trp53, .* …\); fit, choose and predict",
    ):
        check_species([section(MOUSE, "M")], HUMAN[:2])
    with pytest.raises(PanelMismatchError, match=r"mouse genes in section A .* human genes in section C "):
        check_species([section(MOUSE, "A"), section(["G1"], "B"), section(ids(3), "C"), section(MOUSE, "D")])


def test_ids_beside_names_that_tell_nothing_tell_the_species():
    made = section(["G1", "G2"], gene_ids=ids(1, 2, prefix="ENSMUSG"))
    with pytest.raises(PanelMismatchError, match="mouse genes in section S1"):
        check_species([made], HUMAN)


# Together


@pytest.mark.filterwarnings("ignore::histoflow._errors.ScaleWarning", "ignore::histoflow._errors.TrainingWarning")
def test_a_renamed_section_is_embedded_and_predicted_under_its_new_names(make_outs):
    outs = make_outs()
    with pytest.warns(GeneNamesWarning):
        section = rename_genes(read_visium(outs.folder, slide=outs.slide), to="ensembl")
    assert section.var_names.tolist() == [f"ENSG{i}" for i in range(6)]
    again = section_from_anndata(section)
    Embedder(get_encoder("color"), Recipe(patch_um=(112,), context_um=(), grid_um=1000)).section(
        again, open_section_slide(again)
    )
    predicted = RidgeProbe(encoder="color").fit([again], panel=["ENSG3", "ENSG5"]).predict(again)
    assert predicted.var_names.tolist() == ["ENSG3", "ENSG5"]
    assert np.isfinite(predicted.X).all()

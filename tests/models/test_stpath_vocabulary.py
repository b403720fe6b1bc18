"""STPath's words and genes: lists as LazySlide has them, an unknown word an error with the nearest one."""

import json

import pytest
from tests import einops_stub  # noqa: F401  LazySlide's model needs einops
from tests.models.stpath_files import vocabulary

from histoflow._errors import OptionError, PanelMismatchError, WeightsError
from histoflow.models.stpath_vocabulary import ORGANS, TECHS, GeneVocabulary, check_organ, check_tech, token_of

SYMBOLS = ["ERBB2", "GATA3", "ESR1", "KRT8", "KRT18"]


def test_lists_are_those_of_lazyslide():
    from lazyslide_models.feature_prediction.stpath import _constants

    assert list(ORGANS) == _constants.ORGAN_VOC
    assert list(TECHS) == _constants.TECH_VOC


def test_genes_have_the_columns_of_lazyslide():
    from lazyslide_models.feature_prediction.stpath._vocab import GeneVocab

    mapping = vocabulary(SYMBOLS)
    theirs, ours = GeneVocab(mapping), GeneVocabulary(mapping)
    assert (ours.n_tokens, list(ours.genes)) == (theirs.n_tokens, theirs.gene_ids)
    assert ours.tokens(SYMBOLS).tolist() == theirs.symbol2id(SYMBOLS)[0]


@pytest.mark.parametrize(
    ("given", "word"), [("Breast", "Breast"), ("BREAST", "Breast"), ("spinal-cord", "Spinal cord"), ("ovary", "Ovary")]
)
def test_organs_are_known_however_they_are_written(given, word):
    assert check_organ(given) == word
    assert ORGANS[token_of(word, ORGANS)] == word


@pytest.mark.parametrize(("given", "token"), [("Visium HD", 4), ("VisiumHD", 4), ("Visium-HD", 4), ("ST", 1)])
def test_technologies_are_known_however_they_are_written(given, token):
    assert token_of(check_tech(given), TECHS) == token


def test_padding_has_to_be_asked_for():
    assert token_of(check_organ("unstated"), ORGANS) == token_of(check_tech("unstated"), TECHS) == 0
    assert token_of(check_organ("Others"), ORGANS) == 24
    for special in ("<pad>", "pad", "<unk>", ""):
        with pytest.raises(OptionError, match="STPath has no token for"):
            check_organ(special)


@pytest.mark.parametrize(
    ("check", "given", "told"),
    [
        (check_organ, "Brest", r"organ is 'Brest'.*did you mean 'Breast'\? Choose one of Spinal cord, .*Others"),
        (check_organ, "Lymph node", "organ is 'Lymph node'.*give \"Others\" for one that is not in the list"),
        (check_tech, "CosMx", "tech is 'CosMx'.*Choose one of Spatial Transcriptomics, Visium, Xenium, Visium HD;"),
        (check_tech, "Visum", "did you mean 'Visium'"),
    ],
)
def test_an_unknown_word_is_refused_with_the_nearest(check, given, told):
    with pytest.raises(OptionError, match=told):
        check(given)


def test_genes_go_by_symbol_alias_or_id():
    genes = GeneVocabulary(vocabulary(SYMBOLS))
    by_id = genes.ensembl_of(SYMBOLS)
    assert sorted(by_id) == list(genes.genes)
    assert by_id != list(genes.genes)  # the order of the columns is not that of the symbols
    assert genes.tokens(by_id).tolist() == genes.tokens(SYMBOLS).tolist()
    assert genes.tokens(["ERBB2-ALIAS", "none", "ERBB2"]).tolist() == [genes.tokens(["ERBB2"])[0], -1, 2]


def test_unknown_genes_are_named_with_the_nearest():
    genes = GeneVocabulary(vocabulary(SYMBOLS))
    told = r"lacks 2 of the 3 genes asked for: gata3 \(nearest: GATA3\), XYZ999 \(nothing near it\); name genes"
    with pytest.raises(PanelMismatchError, match=told):
        genes.tokens_of_panel(["ESR1", "gata3", "XYZ999"])
    with pytest.raises(PanelMismatchError, match=r"lacks 7 of the 7 .* …;"):
        genes.tokens_of_panel([f"none{i}" for i in range(7)])


def test_vocabulary_of_another_width_is_refused():
    genes = GeneVocabulary(vocabulary(SYMBOLS))
    genes.check_width(7, "stfm.pth")
    told = "holds 5 Ensembl ids, which makes 7 tokens with padding and mask, but weights stfm.pth have 9"
    with pytest.raises(WeightsError, match=told):
        genes.check_width(9, "stfm.pth")


@pytest.mark.parametrize("content", ["[]", "{}", '{"A": 3}', '{"A": ""}', '{"A": "ENSG1"', "\x00"])
def test_what_is_no_vocabulary_is_refused(tmp_path, content):
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(WeightsError, match=r"v\.json is (no gene vocabulary|not valid JSON)"):
        GeneVocabulary.read(path)


def test_a_missing_vocabulary_says_what_it_is(tmp_path):
    told = r"none\.json does not exist; it is the file symbol2ensembl\.json .* --vocabulary on the command line"
    with pytest.raises(WeightsError, match=told):
        GeneVocabulary.read(tmp_path / "none.json")


def test_vocabulary_survives_a_file(tmp_path):
    path = tmp_path / "v.json"
    path.write_text(json.dumps(vocabulary(SYMBOLS)))
    read = GeneVocabulary.read(path)
    assert GeneVocabulary.of_array(read.as_array()) == read
    assert read.hash == GeneVocabulary(dict(reversed(vocabulary(SYMBOLS).items()))).hash
    assert read.hash != GeneVocabulary(vocabulary(SYMBOLS[:4])).hash

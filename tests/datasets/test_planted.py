"""Toy cohort: files as instruments leave them, always the same, and the planted truth is in pictures and counts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoflow._errors import OptionError, OutputError, ReadError
from histoflow.datasets import planted, toy, toy_truth, write_toy
from histoflow.datasets.fields import disc_offsets, sample

imagecodecs = pytest.importorskip("imagecodecs", reason="writing slides needs histoflow[slides]")
tifffile = pytest.importorskip("tifffile", reason="writing slides needs histoflow[slides]")
scanpy = pytest.importorskip("scanpy", reason="reading 10x files independently needs histoflow[hvg]")

COUNTED = ["P1_A", "P1_B", "P2_A", "P2_B"]
MPP = {"P1_A": 1.0, "P1_B": 1.1, "P2_A": 1.05, "P2_B": 1.0, "P2_C": 1.0}


@pytest.fixture(scope="session")
def folder(cache_folder) -> Path:
    """The cohort of seed 0, written once where `toy()` finds it again."""
    return planted._in_cache(0)


@pytest.fixture(scope="session")
def truth(folder):
    return toy_truth(folder)


@pytest.fixture(scope="session")
def manifest(folder):
    return pd.read_csv(folder / "cohort.csv", index_col="section")


@pytest.fixture
def small(monkeypatch):
    """Sections of a square millimetre, so that a cohort takes a second or two to write."""
    wanted = {"P1_A", "P1_B", "P2_C"}  # one of each kind
    plans = tuple(replace(p, size_um=(960, 880), radius_um=400) for p in planted._PLANS if p.section in wanted)
    monkeypatch.setattr(planted, "_PLANS", plans)


def measured(folder, row, mpp):
    """Library-normalised log1p of a section's counts, and its spots in µm, read without histoflow."""
    if row.kind == "visium":
        adata = scanpy.read_10x_h5(folder / row.counts / "filtered_feature_bc_matrix.h5")
        counts = pd.DataFrame(adata.X.toarray(), index=adata.obs_names, columns=adata.var_names)
        places = pd.read_csv(folder / row.counts / "spatial" / "tissue_positions.csv", index_col=0)
        xy = places.loc[counts.index, ["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    else:
        counts = pd.read_csv(folder / row.counts, sep="\t", index_col=0)
        places = pd.read_csv(folder / row.spots, sep="\t")
        places.index = [f"{x}x{y}" for x, y in zip(places["x"], places["y"], strict=True)]
        xy = places.loc[counts.index, ["pixel_x", "pixel_y"]]
    return np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e4), xy.to_numpy() * mpp


@pytest.fixture(scope="session")
def sections(folder, manifest):
    return {name: measured(folder, manifest.loc[name], MPP[name]) for name in COUNTED}


def correlation(a, b):
    """Pearson r of each column of `a` with the column of `b` beside it, or with its only one."""
    a, b = (np.asarray(x, float) - np.mean(np.asarray(x, float), axis=0) for x in (a, b))
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


def disc_average(field, xy_um, radius_um, mpp):
    """Mean of a field of `mpp` µm per pixel within a radius of each point."""
    return sample(field, xy_um[:, None] / mpp + disc_offsets(radius_um / mpp)).mean(axis=1)


def names(truth, driver):
    drivers = truth.drivers["driver"]
    return [gene for gene in drivers.index[drivers == driver] if gene[:3] in {"TEX", "COL", "NBR", "NIL"}]


# --- files


def test_manifest_has_the_columns_and_every_file_it_names(folder, manifest):
    known = {"patient", "block", "order", "study", "kind", "role", "slide", "counts", "spots"}
    assert set(manifest.columns) == known
    assert manifest["kind"].to_dict() == {
        "P1_A": "visium", "P1_B": "st", "P2_A": "visium", "P2_B": "visium", "P2_C": "slide",
    }  # fmt: skip
    assert manifest["role"].value_counts().to_dict() == {"reference": 3, "held_out": 1, "query": 1}
    assert manifest["block"].is_unique
    paths = manifest[["slide", "counts", "spots"]].stack().dropna()
    assert len(paths) == 5 + 4 + 1
    assert all((folder / path).exists() for path in paths)
    assert pd.isna(manifest.loc["P2_C", "counts"])


@pytest.mark.parametrize("name", ["P1_A", "P2_A", "P2_B", "P2_C"])
def test_slides_cover_the_truth_at_their_own_scale(folder, manifest, truth, name):
    with tifffile.TiffFile(folder / manifest.loc[name, "slide"]) as tiff:
        numerator, denominator = tiff.pages[0].tags["XResolution"].value
        size_um = np.array(tiff.pages[0].shape[:2]) * 1e4 * denominator / numerator
    np.testing.assert_allclose(size_um, np.array(truth.tissue[name].shape) * truth.um_per_px, atol=1)


def test_the_cohort_is_small_enough_to_be_made_on_the_fly(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 40e6


def test_sections_have_as_many_spots_and_counts_as_real_ones(sections, manifest):
    for name, (expression, _) in sections.items():
        low, high = (250, 380) if manifest.loc[name, "kind"] == "visium" else (110, 200)
        assert low <= len(expression) <= high
        assert len(expression.columns) == 65


def test_every_spot_lies_on_the_tissue(sections, truth):
    for name, (_, xy) in sections.items():
        column, row = (xy / truth.um_per_px).astype(int).T
        assert truth.tissue[name][row, column].mean() > 0.97


# --- the same always, whole or not at all


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("small")
def test_same_seed_same_bytes_other_seed_other_sections(tmp_path):
    one, two, other = (
        contents(write_toy(tmp_path / name, seed=seed).parent) for name, seed in [("one", 3), ("two", 3), ("other", 4)]
    )
    assert one == two
    same = {str(path) for path in one if one[path] == other.get(path)}
    assert {Path(path).name for path in same} <= {"cohort.csv", "scalefactors_json.json"}


@pytest.mark.usefixtures("small")
def test_nothing_is_written_outside_the_folder(tmp_path):
    manifest = write_toy(tmp_path / "here" / "toy")
    assert manifest == tmp_path / "here" / "toy" / "cohort.csv"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["toy"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("writer", ["write_jpg", "write_space_ranger", "write_json"])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, writer):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(planted, writer, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "toy")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert write_toy(tmp_path / "empty").exists()
    with pytest.raises(OutputError, match=r"folder .*full is not an empty folder; give a new one"):
        write_toy(tmp_path / "full")
    assert contents(tmp_path / "full") == {Path("mine.txt"): b"mine"}


@pytest.mark.usefixtures("small")
def test_the_same_cohort_is_reused_and_another_refused(tmp_path):
    place = planted._once(tmp_path / "toy", 1)
    before = (place / "cohort.csv").stat()
    assert planted._once(tmp_path / "toy", 1) == place
    assert (place / "cohort.csv").stat().st_ino == before.st_ino
    with pytest.raises(OutputError, match="is not an empty folder"):
        planted._once(tmp_path / "toy", 2)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(OptionError, match="seed is -1; give 0 or a positive number"):
        write_toy(tmp_path / "toy", seed=-1)


def test_a_folder_without_truth_says_what_makes_it(tmp_path):
    with pytest.raises(ReadError, match=r"holds no complete toy cohort .* write_toy makes one"):
        toy_truth(tmp_path)


@pytest.mark.usefixtures("small")
def test_a_truncated_truth_is_refused(tmp_path):
    folder = write_toy(tmp_path / "toy").parent
    stored = folder / "truth" / "latents.npz"
    stored.write_bytes(stored.read_bytes()[:5000])
    with pytest.raises(ReadError, match="holds no complete toy cohort"):
        toy_truth(folder)


def test_toy_reads_what_was_written(folder, sections):
    cohort = toy()
    found = {section.uns["histoflow"]["section"]: section for section in cohort}
    for name, (expression, xy) in sections.items():
        assert set(found[name].obs_names) == set(expression.index)
        assert set(found[name].var_names) == set(expression.columns)
        ours = pd.DataFrame(found[name].obsm["spatial_um"], index=found[name].obs_names).loc[expression.index]
        np.testing.assert_allclose(ours, xy, atol=0.005 * xy.max())  # the jpg's scale comes from the pitch
    assert planted._in_cache(0) == folder


# --- the truth


def test_log_rate_of_an_unknown_section_names_those_there_are(truth):
    with pytest.raises(OptionError, match="section is 'P9'; the toy cohort has P1_A, P1_B"):
        truth.log_rate("P9")


@pytest.mark.parametrize("driver", ["texture", "color", "neighborhood"])
def test_the_true_rate_predicts_driven_genes_well(sections, truth, driver):
    genes = names(truth, driver)
    at = truth.drivers.index.get_indexer(genes)
    for name, (expression, xy) in sections.items():
        rates = np.exp(truth.log_rate(name)[at])
        expected = np.stack([disc_average(rate, xy, 27.5, truth.um_per_px) for rate in rates], axis=1)
        r = correlation(expression[genes], np.log(expected))
        assert 0.75 < r.mean() < 0.9
        assert r.min() > 0.6


def test_genes_driven_by_nothing_follow_no_field(sections, truth):
    genes = names(truth, "nothing")
    for name, (expression, xy) in sections.items():
        for field in truth.latents[name]:
            local = disc_average(field, xy, 27.5, truth.um_per_px)[:, None]
            assert np.abs(correlation(expression[genes], local)).mean() < 2 / np.sqrt(len(xy))


def test_color_genes_follow_the_eosin_in_the_picture(folder, manifest, sections, truth):
    genes = names(truth, "color")
    sign = np.sign(truth.drivers.loc[genes, "eosin"].to_numpy())
    for name, (expression, xy) in sections.items():
        eosin = eosin_density(folder / manifest.loc[name, "slide"])
        local = np.log(disc_average(eosin, xy, 56, MPP[name]))[:, None]
        assert (sign * correlation(expression[genes], local)).mean() > 0.6
        assert np.abs(correlation(expression[names(truth, "nothing")], local)).mean() < 2 / np.sqrt(len(xy))


def eosin_density(path):
    """Amount of eosin at each pixel, by unmixing the optical density with textbook colours of H and E."""
    decode = imagecodecs.jpeg8_decode
    picture = decode(path.read_bytes()) if path.suffix == ".jpg" else tifffile.imread(path, key=0)
    density = -np.log10((picture.astype(np.float32) + 1) / 245)
    # Rows of the inverse that take haematoxylin (.65 .70 .29) out and leave eosin (.07 .99 .11); Ruifrok 2001.
    unmix = np.linalg.pinv(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])).astype(np.float32)
    return (density @ unmix[:, 1]).clip(1e-3)


def test_neighborhood_genes_need_the_surroundings(sections, truth):
    genes = names(truth, "neighborhood")
    sign = np.sign(truth.drivers.loc[genes, "niche"].to_numpy())
    for name, (expression, xy) in sections.items():
        infiltrate = truth.latents[name][3] * truth.tissue[name]
        local, around = (disc_average(infiltrate, xy, radius, truth.um_per_px)[:, None] for radius in (27.5, 275))
        r_local, r_around = ((sign * correlation(expression[genes], found)).mean() for found in (local, around))
        assert r_around > r_local + 0.15
        assert r_local < 0.55


def test_patients_differ_by_gene_more_than_sections_of_one_patient(sections):
    means = {name: expression.drop(columns="LOW01").mean() for name, (expression, _) in sections.items()}
    between = (means["P1_A"] - means["P2_A"]).std()
    assert between > 2 * (means["P2_A"] - means["P2_B"]).std()
    assert between < 0.5


def test_mitochondrial_and_ribosomal_genes_would_lead_a_panel_by_their_variance(sections):
    for expression, _ in sections.values():
        driven = expression.filter(regex="^(TEX|COL|NBR)").var().median()
        assert (expression[["MT-CO1", "MT-ND4", "RPL3", "RPS6"]].var() > driven).all()
        assert (expression["LOW01"] > 0).mean() < 0.1

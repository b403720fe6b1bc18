"""Every code block of README and docs runs, on invented files and with quick settings; every link leads somewhere."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from safetensors.torch import save_file
from tests.hest_folder import make_hest_folder
from tests.io import test_features as features
from tests.models.stpath_files import write_files
from tests.pp.test_timm_models import random_model
from tests.quick_encoder import quick_scatter
from tests.test_cli import histoflow
from tests.test_workflow import tiny_cohort
from tests.test_zero_shot import small_gigapath

import histoflow as hf
from histoflow import _errors, cli, models, workflow
from histoflow.datasets import planted
from histoflow.models import recipes, subspot
from histoflow.pp.encoders import registry
from histoflow.workflow import cohorts, slides, zeroshot

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {"P1_A": "S1", "P1_B": "S2", "P2_A": "S3", "P2_B": "S4", "P2_C": "Q1"}
GENES = {"TEX01": "ERBB2", "TEX02": "GATA3", "COL01": "ESR1", "COL02": "CD74"}
QUICK = {
    "README.md": {" --cluster slurm": ""},
    "docs/how-to/evaluate.md": {"buffer_um=500": "buffer_um=330"},
    "docs/how-to/hest-bench.md": {"--encoder uni2 --tasks IDC,PRAD": "--encoder color --tasks TWO"},
    "docs/how-to/offline-weights.md": {"--encoder uni2": "--encoder timm:test_vit", '("uni2"': '("timm:test_vit"'},
    "docs/explanation/intervals.md": {"n_samples=64": "n_samples=4", "panel=20": "panel=5"},
}
"""What a page names that is too large for a test, and what stands in for it; each is there."""
FENCE = re.compile(r"(?ms)^(?:<!-- not run: (?P<why>[^\n]*) -->\n+)?```(?P<kind>\w*)\n(?P<text>.*?)^```$")
NOT_RUN = re.compile(r"(make|pip|python) ")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    why_not: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["kind"], match["text"], match["why"]))
    assert text.count("```") == 2 * len(found), f"{page}: a fence is indented or not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
WITH_CODE = sorted({block.page for block in BLOCKS if block.kind in ("python", "bash")})


def commands(block: Block) -> list[str]:
    """Lines of a shell block, without comments."""
    return [shlex.join(words) for line in block.text.splitlines() if (words := shlex.split(line, comments=True))]


# the workspace


def write_workspace(folder: Path, cache: Path) -> None:
    """What the pages call by name: a cohort, a Space Ranger folder, slides, features, weights, model, prediction."""
    shutil.copytree(tiny_cohort(cache).parent, folder)
    rows = pd.read_csv(folder / "cohort.csv")
    rows["section"], rows["patient"] = rows["section"].map(NAMES), ["P1", "P2", "P3", "P4", "P5"]
    rows.to_csv(folder / "cohort.csv", index=False)
    rename_genes(folder)
    shutil.copytree(folder / "P1_A" / "outs", folder / "outs")
    shutil.copy(folder / "P1_A" / "HE.tif", folder / "HE.tif")
    for slide in ("slide.tif", "other.tif", "slide.svs"):
        shutil.copy(folder / "P2_C" / "HE.tif", folder / slide)
    (folder / "weights").mkdir()
    save_file(random_model("test_vit", num_classes=0).state_dict(), folder / "weights" / "uni2.safetensors")
    make_hest_folder(folder / "hest-bench")
    corners, numbers = features.lattice(), features.vectors(0)
    features.write(folder / "features.h5", "hest", features=numbers, corners=corners)
    features.counts_of(numbers, corners).write_h5ad(folder / "counts.h5ad")
    (folder / "tumour.geojson").write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": {"type": '
        '"Polygon", "coordinates": [[[0, 0], [500, 0], [500, 900], [0, 900], [0, 0]]]}}]}'
    )
    cohort = hf.read_cohort(folder / "cohort.csv")
    write_files(folder, sorted(set(cohort[0].var_names)))
    references = cohort.select(role="reference")
    model = hf.fit(references, model="color", panel=6)
    model.save(folder / "model")
    workflow.write_h5ad(workflow.predict_slide(model, hf.open_wsi(folder / "slide.tif")), folder / "predicted.h5ad")


def rename_genes(folder: Path) -> None:
    """Give four genes of the toy cohort the names that pages use."""
    for path in folder.rglob("filtered_feature_bc_matrix.h5"):
        with h5py.File(path, "r+") as file:
            names = [GENES.get(name.decode(), name.decode()) for name in file["matrix/features/name"][:]]
            del file["matrix/features/name"]
            file["matrix/features/name"] = np.array(names, dtype="S")
    for path in folder.rglob("counts.tsv.gz"):
        head, rest = gzip.decompress(path.read_bytes()).split(b"\n", 1)
        named = "\t".join(GENES.get(name, name) for name in head.decode().split("\t"))
        path.write_bytes(gzip.compress(named.encode() + b"\n" + rest))


@pytest.fixture(scope="module")
def quick():
    """The defaults made small: networks of a few numbers, one epoch, few candidates, a small toy cohort."""
    network = models.Network(hidden_dim=8, pairwise_dim=8, n_layers=1, n_heads=2, n_components=4)
    training = models.Training(max_epochs=1, crops_per_section=1, n_members=1, n_searches=1)
    small = tuple(replace(plan, size_um=(960, 880), radius_um=400) for plan in planted._PLANS)
    with pytest.MonkeyPatch.context() as patch:
        default = replace(recipes.RECIPES["default"], network=network, training=training, n_factors=2)
        patch.setitem(recipes.RECIPES, "default", default)
        patch.setattr(subspot, "_TRAINING", replace(training, n_members=2, batch_size=32))
        patch.setattr(models, "AUTO_NAMES", ("mean", "color"))
        patch.setattr(planted, "_PLANS", small)
        of_demo = sys.modules["histoflow.workflow.demo"]
        patch.setattr(of_demo, "_DEMO_TRAINING", of_demo._DEMO_TRAINING | {"max_epochs": 1})
        patch.setitem(registry._BUILT_IN, "scatter", quick_scatter)
        patch.setattr(workflow.evaluation, "draw_evaluation", lambda *_: None)
        sizes = {"n_epochs": 1, "n_layers": 1, "hidden_dim": 8, "n_samples": 2}
        patch.setattr(hf.predict_expression, "__kwdefaults__", hf.predict_expression.__kwdefaults__ | sizes)
        for module in (cohorts, slides, zeroshot):
            if hasattr(module, "get_encoder"):
                patch.setattr(module, "get_encoder", with_small_gigapath(module.get_encoder))
        yield


def with_small_gigapath(get_encoder):
    return lambda name, **where: small_gigapath() if name == "gigapath" else get_encoder(name, **where)


@pytest.fixture(scope="module")
def workspace(quick, tmp_path_factory, cache_folder):
    folder = tmp_path_factory.mktemp("docs") / "workspace"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("HISTOFLOW_CACHE", str(folder.parent / "cache"))
        write_workspace(folder, cache_folder)
    return folder


def given(page: Path) -> dict:
    """What a page takes for granted."""
    if page.name == "super-resolve.md":
        return {"cohort": hf.read_cohort("cohort.csv")}
    if page.name == "stpath.md":
        section = hf.read_visium("outs", slide="HE.tif")
        measured = section[:5].copy()
        workflow.embed(section, small_gigapath())
        return {"section": section, "measured": measured, "wsi": hf.tile(hf.open_wsi("other.tif"), tile_px=112, mpp=1)}
    if page.name == "your-visium.md":
        section = hf.read_visium("outs", slide="HE.tif")
        return {"adata": AnnData(section.X, section.obs, section.var, obsm={"spatial": section.obsm["spatial"]})}
    return {}


def run_shell(block: Block, text: str, patch: pytest.MonkeyPatch) -> int:
    """Run the commands of a block in this process; the number of those that ran."""
    n_run = 0
    for line in commands(replace(block, text=text)):
        words = shlex.split(line)
        if words[0] == "export":
            patch.setenv(*words[1].split("=", 1))
        elif words[0] == "histoflow":
            done = histoflow(*words[1:])
            assert done.code == 0, f"{block.page}:{block.line}: {line}\n{done.err}"
            n_run += 1
        else:
            assert NOT_RUN.match(line), f"{block.page}:{block.line}: what is {line}?"
    return n_run


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore")
def test_every_block_of_a_page_runs(page, workspace, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(workspace, folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HISTOFLOW_CACHE", str(workspace.parent / "cache"))
    quick_texts = QUICK.get(str(page.relative_to(ROOT)), {})
    blocks = [block for block in blocks_of(page) if block.kind in ("python", "bash") and block.why_not is None]
    assert all(any(text in block.text for block in blocks) for text in quick_texts)
    names = given(page)
    for block in blocks:
        text = block.text
        for long, short in quick_texts.items():
            text = text.replace(long, short)
        if block.kind == "bash":
            run_shell(block, text, monkeypatch)
        else:
            exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), names)


# what does not run, and is counted


def test_what_is_not_run_is_listed_with_its_reason():
    marked = [(block.page.name, block.why_not) for block in BLOCKS if block.why_not is not None]
    assert marked == [
        ("reliability.md", "it takes some ten minutes; ten of its points are in the tests"),
        ("cohort-on-a-cluster.md", "a scheduler and workers that stay; tests/cohort starts its own"),
    ]
    assert [f"{block.page.name}:{block.line}" for block in BLOCKS if not block.kind] == [], "say bash, python or text"
    run = [block for block in BLOCKS if block.kind == "bash" and block.why_not is None]
    lines = [line for block in run for line in commands(block)]
    left_out = {line for line in lines if NOT_RUN.match(line)}
    ran = [line for line in lines if line.startswith("histoflow ")]
    # Installing, and what installs first; `histoflow demo` itself is among those that ran.
    assert {line.split()[0] for line in left_out} == {"make", "pip", "python"}
    assert len(ran) > 25
    assert sum(block.kind == "python" for block in BLOCKS) > 20


def test_commands_that_install_name_what_there_is():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in (line for block in BLOCKS if block.kind == "bash" for line in commands(block)):
        if line.startswith("make "):
            assert line.split()[1] in targets
        if line.startswith("pip install") and "histoflow[" in line:
            assert set(re.search(r"histoflow\[(.*?)\]", line)[1].split(",")) <= set(extras)


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


# errors, links, the site


def tree() -> dict[str, str]:
    """First sentence of every error and warning, by name."""
    classes = [value for value in vars(_errors).values() if isinstance(value, type)]
    return {kind.__name__: kind.__doc__.strip() for kind in classes if kind.__module__ == _errors.__name__}


def test_every_class_of_the_error_tree_has_its_section_with_cause_and_fix():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    sections = dict(re.findall(r"(?ms)^## (\w+)\n\n(.*?)(?=^## |\Z)", page))
    assert sorted(sections) == sorted(tree())
    for name, sentence in tree().items():
        if name in ("HistoflowError", "HistoflowWarning"):
            continue
        assert sentence in sections[name], name
        assert re.search(r"\*\*Cause\.\*\* \S.*\n\n\*\*Fix\.\*\* \S", sections[name]), name


def test_files_that_pages_name_exist():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        named = re.findall(r"(?:docs|tests|benchmarks|src)/[\w./*-]+\w", page.read_text())
        assert [name for name in named if not list(ROOT.glob(name))] == []


class Links(HTMLParser):
    """Anchors of a page, and where its links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.anchors |= {value for key, value in attrs if key in ("id", "name") and value}
        self.targets += [told[key] for key in ("href", "src") if told.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Links(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_of_the_site_leads_somewhere(site, pages):
    assert len(pages) > 25
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            lost = parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].anchors
            if not file.exists() or lost:
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []


def test_the_reference_has_every_public_name(site, pages):
    anchors = pages[site / "reference" / "python.html"].anchors
    functions = [name for name in hf.__all__ if not isinstance(getattr(hf, name), ModuleType)]
    assert [name for name in functions if f"histoflow.{name}" not in anchors] == []
    commands = pages[site / "reference" / "command-line.html"].anchors
    assert [name for name in cli.cli.commands if not any(anchor.endswith(name) for anchor in commands)] == []

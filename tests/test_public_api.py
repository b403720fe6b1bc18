"""The names that users call: there, with the arguments they are called with, short and documented."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import histoflow as hf

MOST_PARAMETERS = 8
CALLS = [
    ("read_visium", ["outs"], {"slide": "HE.tif"}),
    ("read_visium_hd", ["outs/binned_outputs/square_008um"], {"slide": "HE.tif"}),
    ("rename_genes", ["section"], {"to": "symbol"}),
    ("read_st", ["counts", "spots", "slide"], {}),
    ("section_from_anndata", ["adata"], {"slide": "HE.tif", "library_id": None}),
    ("read_cohort", ["cohort.csv"], {}),
    ("open_wsi", ["HE.tif"], {"mpp": 0.5}),
    ("embed", ["cohort", "scatter"], {}),
    ("choose_panel", ["cohort"], {"n_genes": 50, "rule": "variance", "keep": ()}),
    ("fit", ["cohort"], {"model": "stflow", "encoder": "scatter", "panel": 50, "min_counts": 0, "seed": 0}),
    ("evaluate", ["cohort", "out"], {"by": "section", "panel": 50, "normalize": "library", "min_counts": 0}),
    ("run_cohort", ["cohort.csv", "out"], {"task": "embed", "where": None, "resume": True}),
    ("cohort.Where", [], {"cluster": "slurm", "n_workers": 8}),
    ("bench.audit", ["cohort"], {"by": "patient"}),
    ("bench.rerun", ["evaluation/", "cohort"], {"out": "again"}),
    ("bench.uncertainty", ["table"], {"patients": {}}),
    ("bench.noise_ceiling", ["section", "panel"], {"normalize": "library", "seed": 0}),
    ("bench.Areas", [], {"n_areas": 4, "buffer_um": 500.0}),
    ("datasets.toy", [], {}),
    ("datasets.her2st", [("C2",)], {"download": False}),
    ("load_breast", [], {"section": 2, "cache_dir": None, "include_image": False}),
    ("download_breast", ["cache"], {"section": 2}),
    ("tile", ["wsi"], {"tile_px": 224, "mpp": 0.5}),
    ("embed", ["wsi"], {"model": "scatter", "batch_size": 16, "num_workers": 0}),
    ("read_visium_with_image", [], {"visium_path": "outs", "image_path": "HE.tif"}),
    ("match", ["pred", "adata"], {"max_um": 100.0}),
    ("super_resolve", ["adata"], {"wsi": None, "method": "istar", "factor": 8, "genes": None, "cache_dir": None}),
    ("super_resolve", ["wsi"], {"model": "model", "out": "cells.zarr"}),
    ("models.SubspotRegressor", [], {"encoder": "scatter", "normalize": "library", "training": None, "seed": 0}),
    (
        "predict_expression",
        ["wsi"],
        {
            "method": "stflow",
            "reference": "adata",
            "fm_backbone": "ctranspath",
            "n_epochs": 80,
            "n_layers": 4,
            "n_neighbors": 8,
            "n_sample_steps": 5,
            "fm_weight_path": None,
            "cache_dir": None,
        },
    ),
    ("models.STFlow", [], {"network": None, "n_sample_steps": 5, "seed": 0}),
    ("models.STFlow", [], {"encoder": "scatter", "normalize": "library", "training": None}),
    ("models.Network", [], {"n_neighbors": 8, "n_layers": 4, "hidden_dim": 128}),
    ("models.Training", [], {"max_epochs": 1}),
    ("models.RidgeProbe", [], {"protocol": "grouped-cv"}),
    ("models.STPathZeroShot", [], {"weights": "stfm.pth", "vocabulary": None, "organ": "Breast", "tech": "Visium"}),
    ("models.STPathZeroShot.predict_given_spots", ["self", "section", "measured"], {}),
    ("models.RidgeProbe", [], {"alphas": [1.0], "per_gene_alpha": True, "smooth_um": 300.0}),
    ("hest_bench", ["hest-bench", "out"], {"encoder": "scatter", "weights": None, "tasks": ["IDC"], "seed": 0}),
    ("models.Estimator.fit", ["self", "cohort"], {"panel": "panel"}),
    ("models.Estimator.predict", ["self", "section"], {"n_samples": 16, "return_samples": True}),
    ("models.Estimator.save", ["self", "model/"], {}),
    ("models.load", ["model/"], {}),
    (
        "bench.run",
        ["cohort"],
        {"models": {}, "by": "section", "panel": 50, "normalize": "library", "min_counts": 500, "seeds": (0,)},
    ),
]
DEFAULTS = {
    "choose_panel": {"n_genes": 50, "rule": "variance", "normalize": "library", "keep": ()},
    "bench.run": {"by": "section", "panel": 50, "normalize": "library", "min_counts": 0, "seeds": (0,)},
    "fit": {"model": "stflow", "encoder": "scatter", "panel": 50, "normalize": "library", "min_counts": 0, "seed": 0},
    "evaluate": {"by": "section", "panel": 50, "normalize": "library", "min_counts": 0},
    "models.Estimator.predict": {"n_samples": 16},
    "models.STFlow": {"encoder": "scatter", "normalize": "library", "n_sample_steps": 5, "seed": 0},
    "models.Network": {"n_neighbors": 8, "n_layers": 4, "hidden_dim": 128},
    "models.STPathZeroShot": {"encoder": "gigapath", "normalize": "none", "tech": "Visium", "seed": 0},
    "models.RidgeProbe": {
        "protocol": "grouped-cv",
        "encoder": "scatter",
        "normalize": "library",
        "seed": 0,
        "alphas": None,
        "per_gene_alpha": False,
        "smooth_um": None,
    },
    "hest_bench": {"encoder": "scatter", "weights": None, "estimators": None, "tasks": None, "seed": 0},
}


def public(name):
    found = hf
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("name", "arguments", "options"), CALLS, ids=[call[0] for call in CALLS])
def test_a_call_that_is_promised_binds(name, arguments, options):
    signature = inspect.signature(public(name))
    bound = signature.bind(*arguments, **options)
    named = {key: value for key, value in signature.parameters.items() if value.kind is not value.VAR_KEYWORD}
    assert set(bound.arguments) <= set(named)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_is_the_promised_one(name):
    parameters = inspect.signature(public(name)).parameters
    assert {key: parameters[key].default for key in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize("name", ["read_visium", "read_st", "section_from_anndata", "bench.run", "choose_panel", "fit"])
def test_options_are_given_by_name(name):
    kinds = [parameter.kind for parameter in inspect.signature(public(name)).parameters.values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 3
    assert inspect.Parameter.KEYWORD_ONLY in kinds


def test_a_cohort_is_a_sequence():
    assert issubclass(hf.Cohort, Sequence)


def test_a_name_that_is_not_there_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="module 'histoflow' has no attribute 'magic'"):
        _ = hf.magic


MODULES = ["histoflow", *(f"histoflow.{module.name}" for module in pkgutil.iter_modules(hf.__path__))]


def exported():
    """Every object in an ``__all__``, by its full name, modules left out; what is exported twice comes once."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not inspect.ismodule(value) and not any(value is other for other in found.values()):
                found[f"{module.__name__}.{name}"] = value
    return found


EXPORTED = exported()
CLASSES = {name: value for name, value in EXPORTED.items() if inspect.isclass(value)}


def functions():
    """Public functions, and public methods that the public classes define themselves."""
    found = {name: value for name, value in EXPORTED.items() if inspect.isfunction(value)}
    for name, kind in CLASSES.items():
        for attribute, value in vars(kind).items():
            plain = getattr(value, "__func__", value)
            if inspect.isfunction(plain) and not attribute.startswith("_"):
                found[f"{name}.{attribute}"] = plain
    return found


FUNCTIONS = functions()
PUBLIC = FUNCTIONS | CLASSES


def parameters_of(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def section_of(docstring, title):
    """Body of a numpydoc section, or None where there is none."""
    match = re.search(rf"^{title}\n-+\n(.*?)(?=\n\n\S[^\n]*\n-+\n|\Z)", inspect.cleandoc(docstring), re.M | re.S)
    return match and match.group(1)


def documented(docstring, title):
    """Names that a section describes: lines that are not indented, separated by commas."""
    lines = (section_of(docstring, title) or "").splitlines()
    return [name.strip("* ") for line in lines if line and not line.startswith(" ") for name in line.split(",")]


def test_the_walk_sees_functions_methods_and_classes():
    assert {"histoflow.read_visium", "histoflow.bench.run", "histoflow.models.Estimator.fit"} <= set(FUNCTIONS)
    assert {"histoflow.Cohort", "histoflow.models.STFlow", "histoflow.pp.Encoder"} <= set(CLASSES)
    assert len(FUNCTIONS) > 60


def test_exports_exist_each_once():
    for module in map(importlib.import_module, MODULES):
        names = getattr(module, "__all__", [])
        assert len(set(names)) == len(names), module
        assert not [name for name in names if name.startswith("_") or not hasattr(module, name)], module


def test_nothing_public_takes_more_than_eight_parameters():
    counted = {name: len(parameters_of(value)) for name, value in PUBLIC.items()}
    # Records: a column of a manifest, options of a network and its training, an encoder; and the call that people know.
    records = ("histoflow.io.Row", "histoflow.models.Network", "histoflow.models.Training", "histoflow.pp.Encoder")
    for exempt in (*records, "histoflow.predict_expression"):
        del counted[exempt]
    assert {name: n for name, n in counted.items() if n > MOST_PARAMETERS} == {}


def test_everything_public_has_a_docstring_that_begins_with_a_sentence():
    first = {name: (value.__doc__ or "").strip().split("\n")[0] for name, value in PUBLIC.items()}
    assert {name: line for name, line in first.items() if not line.endswith((".", ":"))} == {}


def test_docstrings_describe_the_parameters_that_there_are():
    described = {name: documented(value.__doc__, "Parameters") for name, value in PUBLIC.items()}
    there_are = {name: sorted(parameters_of(value)) for name, value in PUBLIC.items()}
    assert {name: told for name, told in described.items() if told and sorted(told) != there_are[name]} == {}
    assert sum(map(bool, described.values())) > 50


def test_three_parameters_or_more_are_described():
    many = {name: value.__doc__ for name, value in FUNCTIONS.items() if len(parameters_of(value)) > 2}
    assert [name for name, docstring in many.items() if not section_of(docstring, "Parameters")] == []


def returns_data(function):
    annotation = str(inspect.signature(function).return_annotation)
    return re.search(r"ndarray|Floats|DataFrame|AnnData|tuple|Indices", annotation) is not None


def test_arrays_and_tables_that_are_returned_are_described():
    silent = []
    for name, function in FUNCTIONS.items():
        first, _, rest = function.__doc__.partition("\n")
        told = section_of(function.__doc__, "Returns") or "shape (" in first or "result and errors are those of" in rest
        if returns_data(function) and not told:
            silent.append(name)
    assert silent == []


# the snapshot

SNAPSHOT = Path(__file__).with_name("public_api.txt")
PROMISED = ("histoflow", "histoflow.models", "histoflow.bench", "histoflow.stats", "histoflow.pl", "histoflow.datasets")


def api_text() -> str:
    """Names and signatures of what users call, one a line; `make api` writes them into the snapshot."""
    lines = []
    for module in PROMISED:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            lines += api_lines(f"{module}.{name}", value)
    return "\n".join(sorted(set(lines))) + "\n"


def api_lines(name, value):
    """One line of a function or value; of a class also those of its methods and properties."""
    if inspect.ismodule(value):
        return [f"{name}: module"]
    if inspect.isclass(value):
        own = {attribute: member for attribute, member in vars(value).items() if not attribute.startswith("_")}
        inside = [line for attribute, member in own.items() for line in member_lines(f"{name}.{attribute}", member)]
        return [f"{name}{inspect.signature(value)}", *inside]
    return [f"{name}{inspect.signature(value)}"] if callable(value) else [f"{name}: {type(value).__name__}"]


def member_lines(name, member):
    if isinstance(member, property):
        return [f"{name}: property"]
    plain = getattr(member, "__func__", member)
    return [f"{name}{inspect.signature(plain)}"] if inspect.isfunction(plain) else []


def test_names_and_signatures_are_those_of_the_snapshot():
    was, now = SNAPSHOT.read_text().splitlines(), api_text().splitlines()
    gone, new = sorted(set(was) - set(now)), sorted(set(now) - set(was))
    assert (gone, new) == ([], []), "the public API changed: tell it in the changelog, then run `make api`"
    assert not any(" at 0x" in line for line in now)

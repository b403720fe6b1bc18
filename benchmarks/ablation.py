"""What each part of the default flow is worth: `python benchmarks/ablation.py DATA OUT [SEEDS]`.

Two of the sections C2–C5 of HER2ST train and a third is scored, four such pairs, never three and the fourth as in
`heldout.py`; and of the two olfactory bulbs each is trained on alone and the other scored. Mean r over the 50 genes of
the panel by variance, of the training sections; log1p of counts per 10,000; spots of C2–C5 with at least 500 counts.
The parts:

- hest_fm: the linear probe on the same embeddings;
- paper: the published flow;
- default; of the same fit `anchor alone` and `flow alone`, its two halves;
- without patterns: every gene of its own is learned, not what few patterns tell;
- one view: the anchor looks at the whole embedding alone, not also at its parts;
- one network: a single member;
- published sizes: edges and learning rate of the published network, `pairwise_dim=128`, `learning_rate=5e-4`.
"""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from heldout import MIN_COUNTS, write_manifest

from histoflow import io, models, workflow
from histoflow._errors import HistoflowWarning
from histoflow.models.training import Training
from histoflow.pp import Panel, choose_panel
from histoflow.pp.expression import keep_spots, panel_log1p
from histoflow.stats.metrics import mean_with_nan_as_zero, pearson

PAIRS = ((("C3", "C4"), "C2"), (("C2", "C5"), "C3"), (("C2", "C3"), "C4"), (("C3", "C4"), "C5"))


def bulbs(data: Path, out: Path) -> Path:
    """The two olfactory bulbs as a cohort."""
    folder = (data / "stutility_mob").resolve()
    lines = ["section,kind,slide,counts,spots"]
    for name in ("MOB1", "MOB3"):
        own = folder / name
        lines.append(f"{name},st,{own / f'{name}.jpg'},{own / f'{name}.tsv'},{own / f'alignment_table_{name}.tsv'}")
    path = out / "bulbs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def r_of(predicted: AnnData, section: AnnData, panel: Panel) -> float:
    """Mean r over the genes."""
    return mean_with_nan_as_zero(pearson(panel_log1p(section, panel, "library"), predicted.X)).mean


def halves(train: list[AnnData], section: AnnData, panel: Panel, seed: int) -> dict[str, float]:
    """The default flow, and what its two halves predict alone."""
    model = models.STFlow(seed=seed).fit(train, panel=panel)
    told = {"default": r_of(model.predict(section), section, panel)}
    for name, share in (("anchor alone", 0.0), ("flow alone", 1.0)):
        model._share = share
        told[name] = r_of(model.predict(section), section, panel)
    return told


def without_patterns(train: list[AnnData], section: AnnData, panel: Panel, seed: int) -> dict[str, float]:
    """The default flow that learns every gene as it was measured."""
    model = models.STFlow(seed=seed)
    model._recipe = replace(model._recipe, n_factors=None)
    return {"without patterns": r_of(model.fit(train, panel=panel).predict(section), section, panel)}


def one_view(train: list[AnnData], section: AnnData, panel: Panel, seed: int) -> dict[str, float]:
    """The default flow moved towards an anchor that looks at the whole embedding alone."""
    with mock.patch("histoflow.models.stflow.views_of", lambda made, n_features: (np.arange(n_features),)):
        model = models.STFlow(seed=seed).fit(train, panel=panel)
    return {"one view": r_of(model.predict(section), section, panel)}


def one_network(train: list[AnnData], section: AnnData, panel: Panel, seed: int) -> dict[str, float]:
    """The default flow with a single member."""
    model = models.STFlow(training=Training(learning_rate=1e-3, n_members=1), seed=seed)
    return {"one network": r_of(model.fit(train, panel=panel).predict(section), section, panel)}


def published_sizes(train: list[AnnData], section: AnnData, panel: Panel, seed: int) -> dict[str, float]:
    """The default flow with the sizes and the steps of the published network."""
    model = models.STFlow(network=models.Network(), training=Training(n_members=4), seed=seed)
    return {"published sizes": r_of(model.fit(train, panel=panel).predict(section), section, panel)}


def references(train: list[AnnData], section: AnnData, panel: Panel, seed: int) -> dict[str, float]:
    """The linear probe and the published flow."""
    made = {"hest_fm": models.RidgeProbe(seed=seed), "paper": models.STFlow("paper", seed=seed)}
    return {name: r_of(one.fit(train, panel=panel).predict(section), section, panel) for name, one in made.items()}


def table(told: dict[str, dict[str, dict[str, float]]]) -> str:
    """Of every part: r, its spread over seeds, and its difference from the default with its spread over all runs."""
    runs = pd.DataFrame(
        {key: {name: r for found in one.values() for name, r in found.items()} for key, one in told.items()}
    ).T
    seed = runs.index.str.rpartition(" ").get_level_values(-1)
    lines = []
    for group, prefix in (("C2–C5", "C"), ("olfactory bulbs", "M")):
        own = runs[runs.index.str.startswith(prefix)]
        by_seed = own.groupby(seed[runs.index.str.startswith(prefix)]).mean()
        more = own.sub(own["default"], axis=0)
        lines += [
            f"{group}: {len(own)} runs, {len(by_seed)} seeds",
            "",
            "| | r | sd over seeds | less the default | sd over runs |",
        ]
        lines += ["|---|---|---|---|---|"]
        for name in runs.columns:
            spread = f"{by_seed[name].std():.4f}" if len(by_seed) > 1 else "–"
            cells = (f"{by_seed[name].mean():.3f}", spread, f"{more[name].mean():+.3f}", f"{more[name].std():.3f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


VARIANTS: tuple[Callable[..., dict[str, float]], ...] = (
    references,
    halves,
    without_patterns,
    one_view,
    one_network,
    published_sizes,
)


def main(data: Path, out: Path, n_seeds: int) -> None:
    """Write every figure to OUT/ablation.json, pair after pair; a second run takes up what is there."""
    warnings.simplefilter("ignore", HistoflowWarning)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    sections = {}
    for manifest, least in ((write_manifest(data, out), MIN_COUNTS), (bulbs(data, out), 0)):
        cohort = io.read_cohort(manifest)
        workflow.embed_for(cohort, [models.STFlow()])
        sections |= {s.uns["histoflow"]["section"]: keep_spots(s, min_counts=least) for s in cohort}
    path = out / "ablation.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(n_seeds):
        for names, test in (*PAIRS, (("MOB1",), "MOB3"), (("MOB3",), "MOB1")):
            key = f"{'+'.join(names)} to {test}, seed {seed}"
            train = [sections[name] for name in names]
            panel = choose_panel(train)
            for variant in VARIANTS:
                known = told.setdefault(key, {})
                if variant.__name__ not in known:
                    known[variant.__name__] = variant(train, sections[test], panel, seed)
                    path.write_text(json.dumps(told, indent=2))
            print(key, {name: round(r, 4) for found in told[key].values() for name, r in found.items()}, flush=True)
    print(table(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)

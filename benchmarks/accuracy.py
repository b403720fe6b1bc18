"""The default flow beside the linear probe and the published flow: `python benchmarks/accuracy.py DATA OUT`.

Real sections, embedded with `scatter`, the 50 genes of the panel by variance (of the training sections), spots with at
least 500 counts. Parts, each resumable in its own folder of OUT; `--only` names some of them:

- loo: C2–C5 of HER2ST (one patient, one block, serial: optimistic), one left out, log1p of counts per 10,000;
- raw: the same on log1p of raw counts;
- one: C2 alone as reference, C3 held out;
- patient: C2–C5, brought to 3.2 µm a pixel, as references, A1 of another patient held out;
- bulbs: of two olfactory bulbs of different animals, either one as reference for the other.

Prints, of every part and model, r (mean over genes, folds and seeds; spread over seeds), r of every fold, MSE skill,
and of calibrated models coverage, widths and CRPS; writes them to OUT/accuracy.json.
"""

import argparse
import csv
import json
import warnings
from pathlib import Path

import pandas as pd
import torch
from heldout import MIN_COUNTS, SLIDES, write_manifest
from PIL import Image

from histoflow import bench, io, models, workflow
from histoflow._errors import HistoflowWarning

COARSE_UM, FINE_UM, LEVEL = 3.2, 0.686, 0.9
BULBS = ("MOB1", "MOB3")
INTERVALS = ("coverage_80", "coverage_90", "width_80", "width_90", "crps")


def coarse(slide: Path, out: Path) -> tuple[Path, str]:
    """A copy of a slide at 3.2 µm a pixel, and the size of the slide as a frame of its spots."""
    path = out / f"{slide.stem}.png"
    with Image.open(slide) as image:
        if not path.exists():
            size = [round(side * FINE_UM / COARSE_UM) for side in image.size]
            image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BOX).save(path)
        return path, "x".join(map(str, image.size))


def another_patient(data: Path, out: Path) -> Path:
    """C2–C5, made as coarse as A1, as references, and A1 held out."""
    folder = (data / "her2st").resolve()
    path = out / "patient.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["section", "patient", "kind", "slide", "counts", "spots", "spots_frame", "role"])
        for section, name in SLIDES.items():
            own = folder / section
            slide, frame = coarse(own / name, out)
            tables = [own / "counts.tsv.gz", own / "spots_selection.tsv"]
            writer.writerow([section, "C", "st", slide.resolve(), *tables, frame, "reference"])
        own = folder / "A1"
        files = [own / name for name in ("A1_HE_image_dark.png", "counts.tsv.gz", "spots_selection.tsv")]
        writer.writerow(["A1", "A", "st", *files, "6954x7435", "held_out"])
    return path


def one_reference(data: Path, out: Path) -> Path:
    """C2 as the reference, C3 held out."""
    table = pd.read_csv(write_manifest(data, out), keep_default_na=False)
    table = table[table["section"].isin(["C2", "C3"])].assign(role=["reference", "held_out"])
    path = out / "one.csv"
    table.to_csv(path, index=False)
    return path


def bulb(data: Path, out: Path, reference: str) -> Path:
    """One olfactory bulb as the reference for the other."""
    path = out / f"{reference}.csv"
    lines = ["section,patient,kind,slide,counts,spots,role"]
    for name in BULBS:
        own = (data / "stutility_mob" / name).resolve()
        files = f"{own / f'{name}.jpg'},{own / f'{name}.tsv'},{own / f'alignment_table_{name}.tsv'}"
        lines.append(f"{name},{name},st,{files},{'reference' if name == reference else 'held_out'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def parts(data: Path, out: Path) -> dict[str, tuple[list[Path], str]]:
    """Manifests and expression scale of every part."""
    four = write_manifest(data, out)
    return {
        "loo": ([four], "library"),
        "raw": ([four], "none"),
        "one": ([one_reference(data, out)], "library"),
        "patient": ([another_patient(data, out)], "library"),
        "bulbs": ([bulb(data, out, name) for name in BULBS], "library"),
    }


def run(manifest: Path, out: Path, normalize: str, seeds: tuple[int, ...], names: list[str]) -> pd.DataFrame:
    """Evaluate models on one cohort."""
    cohort = io.read_cohort(manifest)
    compared = {name: models.from_name(name, level=LEVEL) for name in ("mean", "hest_fm", "stflow")}
    compared["paper"] = models.STFlow("paper")
    compared = {name: compared[name] for name in names}
    workflow.embed_for(cohort, [*compared.values(), models.RidgeProbe(encoder="color")])
    return bench.run(cohort, models=compared, normalize=normalize, min_counts=MIN_COUNTS, seeds=seeds, out=out)


def told(table: pd.DataFrame) -> dict[str, object]:
    """What is printed of one part."""
    found: dict[str, object] = {}
    undefined = (table["metric"] == "pearson") & table["value"].isna()
    table = table.assign(value=table["value"].mask(undefined, 0.0))
    for model, own in table[table["section"] != ""].groupby("model", sort=False):
        by = own.groupby(["metric", "fold", "seed"])["value"].mean().unstack("metric")
        if "pearson" not in by:
            continue
        seeds = by["pearson"].groupby("seed").mean()
        one = {"r": seeds.mean(), "sd_over_seeds": seeds.std(ddof=1) if len(seeds) > 1 else None, "n_seeds": len(seeds)}
        means = {metric: by[metric].mean() for metric in ("mse_skill", *INTERVALS) if metric in by}
        folds = by["pearson"].groupby("fold").mean().to_dict()
        found[str(model)] = _rounded(one | means | {f"r_{fold}": value for fold, value in folds.items()})
        if "coverage_80" in by:
            found[str(model)] |= {"genes_within_10_points": _close(own)}
    return found


def _close(own: pd.DataFrame) -> dict[str, float]:
    """Share of genes whose coverage, as the mean over sections, is within ten points of what was asked."""
    means = own[own["metric"].isin(["coverage_80", "coverage_90"])].groupby(["metric", "gene"])["value"].mean()
    return {
        metric: round(float((abs(of - float(str(metric)[-2:]) / 100) <= 0.1).mean()), 3)
        for metric, of in means.groupby("metric")
    }


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else round(float(value), 4) for key, value in values.items()}


def main() -> None:
    """Run the parts and write OUT/accuracy.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["loo", "raw", "one", "patient", "bulbs"])
    parser.add_argument("--models", nargs="*", default=["mean", "hest_fm", "stflow", "paper"])
    given = parser.parse_args()
    warnings.simplefilter("ignore", HistoflowWarning)
    torch.set_num_threads(1)
    Image.MAX_IMAGE_PIXELS = None
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "accuracy.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for name, (manifests, normalize) in parts(given.data, given.out).items():
        if name not in given.only:
            continue
        seeds = tuple(range(given.seeds))
        tables = [run(one, given.out / f"{name}-{one.stem}", normalize, seeds, given.models) for one in manifests]
        figures[name] = told(pd.concat(tables, ignore_index=True))
        path.write_text(json.dumps(figures, indent=2))
        print(name, json.dumps(figures[name], indent=2), flush=True)


if __name__ == "__main__":
    main()

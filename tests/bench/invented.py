"""An invented evaluation for the report: names that attack a page, genes of known r, intervals of known coverage."""

from io import BytesIO

import anndata
import numpy as np
import pandas as pd
from PIL import Image

from histoflow._errors import ReadError
from histoflow._keys import UNS
from histoflow.stats.metrics import pearson, variance_ratio

TAG, FORMULA, QUOTED, FLAT = "<script>window.hacked=1</script>", '=cmd("x")', 'A"B,C', "NIL"
GENES = ("EPCAM", TAG, FORMULA, "<img src=x onerror=window.hacked=1>", QUOTED, "CD3E", FLAT)
SECTIONS = ('S"1</script><b>', "S2")
ORACLE = "library_size (oracle: true totals)"
QUALITY = {"mean": 0.0, "color": 0.3, ORACLE: 0.5, "hest_fm": 0.6, "best<i>": 1.0}
SHARES = "adjacent serial sections of one block: optimistic"
N_SPOTS, COVERED = 40, {50: 0.52, 80: 0.6, 90: 0.71}


def white_jpeg() -> bytes:
    """A white picture of 8 × 8 pixels."""
    written = BytesIO()
    Image.new("RGB", (8, 8), "white").save(written, "JPEG")
    return written.getvalue()


def prediction(section: str, model: str = "best<i>", n_spots: int = N_SPOTS, genes=GENES) -> anndata.AnnData:
    """A prediction as an evaluation keeps it; each next gene is predicted worse, the last one does not vary."""
    rng = np.random.default_rng([len(section), n_spots])
    measured = rng.gamma(2.0, size=(n_spots, len(genes)))
    own = np.random.default_rng([len(section), len(model)])
    noise = own.normal(size=measured.shape) * (0.3 + 0.3 * np.arange(len(genes)))
    expression = measured + noise / QUALITY[model] if QUALITY[model] else np.ones_like(measured)
    expression[:, -1] = 1.0
    made = anndata.AnnData(expression.astype(np.float32))
    made.var_names, made.obs_names = list(genes), [f"{section}-{i}" for i in range(n_spots)]
    made.layers["measured"] = measured.astype(np.float32)
    side = int(np.ceil(np.sqrt(n_spots)))
    made.obsm["spatial_um"] = np.stack([np.arange(n_spots) % side, np.arange(n_spots) // side], axis=1) * 100.0 + 500
    made.uns[UNS] = {
        "section": section,
        "method": model,
        "normalize": "library",
        "scale": "log1p of counts per 10,000",
        "trained_on": [name for name in SECTIONS if name != section],
        "panel": list(genes),
        "panel_rule": "variance",
        "panel_hash": "0123456789ab",
        "embedding": {"name": "scatter", "version": "2", "patch_um": [112.0, 224.0], "licence": "BSD-3-Clause"},
        "versions": {"histoflow": "0.1.0"},
        "seed": 0,
        "n_samples": 1,
    }
    return made


def calibrated(made: anndata.AnnData) -> anndata.AnnData:
    """The same prediction with a 90 % interval and three places flagged."""
    width = np.linspace(0.5, 2.0, made.n_obs)[:, None] * np.ones(made.n_vars)
    made.layers["lower"], made.layers["upper"] = made.X - width / 2, made.X + width / 2
    made.uns[UNS]["level"] = 0.9
    made.obs["unfamiliar"] = np.arange(made.n_obs) < 3
    return made


def read(fold: str, section: str, model: str, seed: int) -> anndata.AnnData:
    """What was predicted; of one model nothing was kept."""
    if model == "color":
        raise ReadError("there is no prediction of color")
    made = prediction(section, model)
    return calibrated(made) if model == "best<i>" else made


def table(sections=SECTIONS, *, truth: bool = True) -> pd.DataFrame:
    """The long table of these predictions; `truth` adds what a newer evaluation has: ceiling, coverage, pooled rows."""
    rows = []
    for section in sections:
        for model in QUALITY:
            made = prediction(section, model)
            measured, expression = made.layers["measured"], np.asarray(made.X)
            r = pearson(measured, expression)
            values = {"pearson": r, "variance_ratio": variance_ratio(measured, expression), "mse_skill": r - 0.1}
            if truth:
                values |= {"share_of_ceiling": r / 0.9}
            rows += _rows(section, model, values)
            if truth and model == "best<i>":
                rows += _rows(section, model, {f"coverage_{p}": np.full(len(r), q) for p, q in COVERED.items()})
                rows.append(_row(section, model, "", "svg_overlap", 0.5))
                rows += [_row("", model, gene, "pearson_pooled", 0.99) for gene in GENES]
        if truth:
            rows += _rows(section, "(ceiling)", {"ceiling": np.full(len(GENES), 0.9)})
    return pd.DataFrame(rows)


def _rows(section: str, model: str, values: dict[str, np.ndarray]) -> list[dict[str, object]]:
    return [
        _row(section, model, gene, metric, float(value))
        for metric, column in values.items()
        for gene, value in zip(GENES, column, strict=True)
    ]


def _row(section: str, model: str, gene: str, metric: str, value: float) -> dict[str, object]:
    known = {"dataset": "mine & yours", "by": "section", "fold": section, "shares": SHARES, "section": section}
    return {**known, "model": model, "seed": 0, "gene": gene, "metric": metric, "value": value, "error": ""}

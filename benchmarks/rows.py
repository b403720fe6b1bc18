"""The rows of RESULTS.md: what is asked, the commands that measure it, and what of their output answers."""

from collections.abc import Callable
from dataclasses import dataclass

Told = list[dict]
"""Output of a row's commands, in their order."""


@dataclass(frozen=True)
class Row:
    """One figure, or several that one command measures.

    Parameters
    ----------
    name
        What is measured.
    commands
        Python commands that each print one line of JSON last; ``DATA`` stands for the folder of the real sections.
    answers
        From the output of the commands to what is asked and what was reached, in words, and whether it was.
    needs
        ``"data"`` or ``"cuda"``, where it can only be measured with these.
    """

    name: str
    commands: tuple[str, ...]
    answers: Callable[[Told], list[tuple[str, str, str, bool]]]
    needs: str = ""


def ratio(told: dict, key: str) -> float:
    """How many times the reference takes what ours takes."""
    return float(told["reference"][key] / told["ours"][key])


def at_least(what: str, wanted: float, reached: float, detail: str = "") -> tuple[str, str, str, bool]:
    return what, f"≥ {wanted:g}×", f"{reached:.2f}×{detail}", reached >= wanted


def at_most(what: str, wanted: float, unit: str, reached: float, detail: str = "") -> tuple[str, str, str, bool]:
    return what, f"< {wanted:g} {unit}", f"{reached:.3g} {unit}{detail}", reached < wanted


def of_step(precision: str, wanted: float) -> Callable[[Told], list[tuple[str, str, str, bool]]]:
    """Training step, single draw and memory of training."""

    def answers(told: Told) -> list[tuple[str, str, str, bool]]:
        found = []
        for what, key in (("training step", "step_s"), ("one draw", "sample_s")):
            seconds = f" ({told[0]['ours'][key]:.3f} s; processor time {ratio(told[0], f'cpu_{key}'):.2f}×)"
            found.append(at_least(f"{what}, N=4000, {precision}", wanted, ratio(told[0], key), seconds))
        held = f" ({told[0]['ours']['max_rss_gb']:.2f} GB)"
        found.append(at_least(f"memory of training, N=4000, {precision}", 4, ratio(told[0], "max_rss_gb"), held))
        return found

    return answers


def of_draws(precision: str) -> Callable[[Told], list[tuple[str, str, str, bool]]]:
    return lambda told: [at_least(f"16 draws, N=4000, {precision}", 8, ratio(told[0], "sample16_s"))]


def of_many_spots(told: Told) -> list[tuple[str, str, str, bool]]:
    memory = [one["ours"]["sample_rss_gb"] for one in told]
    seconds = [one["ours"]["cpu_sample_s"] for one in told]
    detail = " (1k, 10k, 100k: " + ", ".join(f"{one:.2f}" for one in memory) + " GB"
    detail += "; processor " + ", ".join(f"{one:.2f}" for one in seconds) + " s)"
    return [at_most("drawing 100,000 spots", 2, "GB", memory[-1], detail)]


def of_embedding(told: Told) -> list[tuple[str, str, str, bool]]:
    found = []
    for one in told:
        what = f"embedding beside LazySlide, {one['model']}, {one['precision']}"
        detail = (
            f" ({one['ours']['tiles_per_s']:.1f} tiles/s; processor time {one['cpu_ratio']:.2f}×; features differ by "
        )
        detail += f"{one['largest_difference']:.1e}, their spread is {one['spread_of_features']:.2g})"
        found.append(at_least(what, 1.2, one["ratio"], detail))
    return found


def of_scatter(told: Told) -> list[tuple[str, str, str, bool]]:
    speed = f" ({told[0]['scatter_tiles_per_s']:.1f} tiles/s; processor time {told[0]['cpu_ratio']:.2f}×)"
    return [at_least("`scatter` beside a bf16 ResNet50", 1, told[0]["ratio"], speed)]


def of_fit(told: Told) -> list[tuple[str, str, str, bool]]:
    detail = f" ({told[0]['cpu_seconds']:.0f} s of processor, {told[0]['peak_gb']:.2f} GB)"
    return [at_most("`fit` of C2–C5, embeddings cached", 180, "s", told[0]["seconds"], detail)]


def of_scale(told: Told) -> list[tuple[str, str, str, bool]]:
    found = []
    for one in told:
        *_, last = one["runs"]
        times = ", ".join(f"{run['tiles']:,}: {run['cpu_seconds']:.0f} s" for run in one["runs"])
        detail = f" (processor, {times})"
        what = f"predict + write, {last['model']}, {last['tiles']:,} tiles, {last['genes']} genes"
        found.append(at_most(what, 8, "GB", last["peak_rss_gb"], detail))
    return found


def of_ridge(told: Told) -> list[tuple[str, str, str, bool]]:
    same = "same strength" if told[0]["same_alpha"] else "other strength"
    what = f"ridge of {told[0]['genes']:,} genes beside scikit-learn"
    found = at_least(what, 20, told[0]["ratio_of_seconds"], f" ({same})")
    return [found if told[0]["genes"] >= 20_000 else (what, "–", *found[2:])]  # asked of 20,000 genes


def of_cold_start(told: Told) -> list[tuple[str, str, str, bool]]:
    found = told[0]["commands"]
    shown = ("import torch", "import histoflow", "histoflow --help", "load and predict")
    return [("cold start", "–", "; ".join(f"{name} {found[name]['seconds']:.2f} s" for name in shown), True)]


def of_gpu(told: Told) -> list[tuple[str, str, str, bool]]:
    return [
        at_most(f"fit of 4,000 spots on {told[0]['card']}", 30, "s", told[0]["fit_s"]),
        at_most(f"one draw of 4,000 spots on {told[0]['card']}", 0.2, "s", told[0]["sample_s"]),
    ]


def rows(*, quick: bool) -> list[Row]:
    """Every row; `quick` takes fewer pairs and smaller sizes of the longest, as the commands say."""
    pairs, few, tiles = (5, 1, 64) if quick else (5, 5, 128)
    sizes = {"hest_fm": "10000 100000 1000000", "stflow": "10000 100000" if quick else "10000 100000 1000000"}
    denoiser = "benchmarks/denoiser.py --json"
    many = tuple(f"{denoiser} --spots {n} --tasks sample --sides ours --repeats 1" for n in (1000, 10_000, 100_000))
    embedding = f"benchmarks/embedding.py --pairs {pairs} --tiles {tiles} --precision"
    made = [
        Row("many spots", many, of_many_spots),
        Row("scatter", ("benchmarks/embedding.py --scatter",), of_scatter),
        Row("embedding", (f"{embedding} fp32", f"{embedding} bf16"), of_embedding),
        Row("fit", ("benchmarks/fit_cohort.py DATA",), of_fit, "data"),
        Row("cold start", (f"benchmarks/cold_start.py --json --repeats {3 if quick else 5}",), of_cold_start),
        Row("ridge", ("benchmarks/ridge.py --genes 20000 --sklearn-genes 1000",), of_ridge),
    ]
    for precision, wanted in (("fp32", 5), ("best", 10)):
        command = f"{denoiser} --precision {precision} --tasks"
        made.insert(0, Row(f"16 draws, {precision}", (f"{command} sample16 --repeats {few}",), of_draws(precision)))
        made.insert(0, Row(precision, (f"{command} step sample --repeats {pairs}",), of_step(precision, wanted)))
    for kind, tiles_of_kind in sizes.items():
        command = f"benchmarks/scale.py --json --wide 0 --samples 2 --kind {kind} --tiles {tiles_of_kind}"
        made.append(Row(f"scale, {kind}", (command,), of_scale))
    return [*made, Row("graphics card", ("benchmarks/gpu.py",), of_gpu, "cuda")]

"""What all figures share: no pyplot, files written whole, inputs checked."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from histoflow import pl
from histoflow._errors import NotFiniteError, OptionError, ShapeError
from histoflow.pl.figures import check_genes, number, r_note, shaped


def test_pyplot_is_never_loaded():
    code = "import sys, histoflow.pl; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_save_writes_png_at_150_dpi_and_leaves_nothing_else(tmp_path):
    path = pl.save(Figure(figsize=(2, 1)), tmp_path / "new" / "figure.png")
    assert imread(path).shape == (150, 300, 4)
    assert [found.name for found in path.parent.iterdir()] == ["figure.png"]


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(OptionError, match=r"path must end in \.png, got .*figure\.pdf"):
        pl.save(Figure(), tmp_path / "figure.pdf")


def test_a_figure_that_fails_to_draw_leaves_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    figure = Figure()
    figure.add_subplot().set_title("$unbalanced {$")
    with pytest.raises(ValueError, match="unbalanced"):
        pl.save(figure, path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_numbers_carry_a_minus_sign_and_undefined_r_is_said():
    assert number(-0.123) == "−0.12"
    assert [r_note(None, 0), r_note([0.5], 0), r_note([np.nan], 0)] == ["", ", r = 0.50", ", r not defined"]


@pytest.mark.parametrize(
    ("values", "shape", "error", "text"),
    [
        (np.zeros((3, 2)), (4, 2), ShapeError, r"x must have shape \(n_spots, n_genes\) = \(4, 2\), got \(3, 2\)"),
        (np.zeros((3, 2)), (None, 1), ShapeError, r"= \(3, 1\), got \(3, 2\)"),
        (5.0, (None, 1), ShapeError, r"= \(any, 1\), got \(\)"),
        (np.zeros((0, 1)), (None, 1), ShapeError, r"= \(any, 1\), got \(0, 1\)"),
        ([[np.nan]], (1, 1), NotFiniteError, "x holds NaN or infinite values"),
    ],
)
def test_arrays_that_do_not_fit_are_told(values, shape, error, text):
    with pytest.raises(error, match=text):
        shaped("x", values, shape)


@pytest.mark.parametrize("n_genes", [0, 3])
def test_too_many_or_no_genes_are_told(n_genes):
    with pytest.raises(OptionError, match=f"genes must name 1 to 2 columns, got {n_genes}"):
        check_genes(["gene"] * n_genes, 2)

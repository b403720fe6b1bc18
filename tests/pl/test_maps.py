"""Maps: spots at their places and sizes in µm, one colour scale for measured and predicted, y downwards."""

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.image import AxesImage

from histoflow import pl
from histoflow._errors import OptionError, ShapeError

XY = np.stack(np.meshgrid(np.arange(6), np.arange(4)), axis=-1).reshape(-1, 2) * 200.0 + 1000
MEASURED = np.random.default_rng(0).gamma(2.0, 1.0, size=(24, 2))
PREDICTED = 0.5 * MEASURED + 0.3
GENES = ["ERBB2", "CD74"]
WHITE = pl.Thumbnail(np.full((30, 40, 3), 255, dtype=np.uint8), (0, 4000, 0, 3000))


def panels(figure):
    return [axes for axes in figure.axes if any(isinstance(c, EllipseCollection) for c in axes.collections)]


def circles(axes):
    (found,) = axes.collections
    return found


def titles(figure):
    return [axes.get_title() for axes in panels(figure)]


def test_titles_name_gene_side_and_r():
    figure = pl.measured_beside_predicted(MEASURED, PREDICTED, xy_um=XY, genes=GENES, r=[0.714, np.nan])
    assert titles(figure) == [
        "ERBB2, measured",
        "ERBB2, predicted, r = 0.71",
        "CD74, measured",
        "CD74, predicted, r not defined",
    ]


def test_measured_and_predicted_share_their_colours_and_genes_do_not():
    figure = pl.measured_beside_predicted(MEASURED, PREDICTED, xy_um=XY, genes=GENES)
    limits = [circles(axes).get_clim() for axes in panels(figure)]
    assert limits[0] == limits[1] != limits[2] == limits[3]
    assert limits[0] == pytest.approx(np.percentile([MEASURED[:, 0], PREDICTED[:, 0]], (1, 99)))


def test_each_map_shows_its_own_column():
    figure = pl.measured_beside_predicted(MEASURED, PREDICTED, xy_um=XY, genes=GENES, width=PREDICTED / 9)
    drawn = [circles(axes).get_array() for axes in panels(figure)]
    for row in range(2):
        for shown, values in zip(drawn[3 * row :], (MEASURED, PREDICTED, PREDICTED / 9), strict=False):
            np.testing.assert_array_equal(shown, values[:, row])


def test_colour_bars_say_the_scale():
    figure = pl.measured_beside_predicted(
        MEASURED, PREDICTED, xy_um=XY, genes=GENES, width=PREDICTED, scale_label="log1p of raw counts"
    )
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["log1p of raw counts", "interval width"] * 2


@pytest.mark.parametrize("thumbnail", [None, WHITE])
def test_spots_lie_at_their_micrometres_with_y_down_and_do_not_overlap(thumbnail):
    figure = pl.measured_beside_predicted(MEASURED, PREDICTED, xy_um=XY, genes=GENES, thumbnail=thumbnail)
    for axes in panels(figure):
        np.testing.assert_array_equal(circles(axes).get_offsets(), XY)
        assert axes.get_xlim() == (800, 2200)
        assert axes.get_ylim() == (1800, 800)
        assert axes.get_aspect() == 1
        diameters = circles(axes).get_widths()
        assert 100 < diameters.max() < 200


def test_a_circle_covers_its_micrometres_on_the_page():
    figure = pl.expression_map([[1.0], [1.0]], [[0, 0], [200, 0]], genes=["A"])
    figure.canvas.draw()
    (axes,) = panels(figure)
    page = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3]
    (left, y), (right, _) = np.round(axes.transData.transform([[-200, 0], [100, 0]])).astype(int)
    covered = (page[y, left:right] != 255).any(axis=-1).mean()
    assert covered == pytest.approx(circles(axes).get_widths().max() / 300, abs=0.02)


def test_the_thumbnail_lies_at_its_place():
    figure = pl.expression_map(MEASURED[:, :1], XY, genes=["A"], thumbnail=WHITE)
    (image,) = [child for child in panels(figure)[0].get_children() if isinstance(child, AxesImage)]
    assert image.get_extent() == [0, 4000, 3000, 0]
    assert image.origin == "upper"


def test_the_scale_bar_is_as_long_as_it_says():
    figure = pl.measured_beside_predicted(MEASURED, PREDICTED, xy_um=XY, genes=GENES)
    (bar,) = panels(figure)[2].lines
    assert np.ptp(bar.get_xdata()) == 200
    assert [text.get_text() for text in panels(figure)[2].texts] == ["200 µm"]


def test_the_colour_bar_points_where_values_are_clipped():
    flat = np.ones((24, 1))
    for values, expected in [(flat, "neither"), (MEASURED[:, :1], "both")]:
        figure = pl.expression_map(values, XY, genes=["A"])
        assert circles(panels(figure)[0]).colorbar.extend == expected


def test_expression_maps_fill_a_grid_and_hide_the_rest():
    figure = pl.expression_map(np.tile(MEASURED, 3)[:, :5], XY, genes=list("ABCDE"))
    assert titles(figure) == list("ABCDE")
    assert sum(not axes.axison for axes in figure.axes) == 1


def test_one_spot_is_drawn():
    figure = pl.measured_beside_predicted([[1.0]], [[2.0]], xy_um=[[5, 5]], genes=["A"])
    assert circles(panels(figure)[0]).get_widths().max() < 100


def test_overlay_shows_the_whole_slide_and_spots_beyond_it():
    figure = pl.spots_on_slide(WHITE, [*XY, [5000, 100]], title="C2")
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, 5200)
    assert axes.get_ylim() == (3000, -100)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("x (µm)", "y (µm)", "C2")


def test_inputs_stay_as_they_were():
    measured, xy = MEASURED.copy(), XY.copy()
    figure = pl.measured_beside_predicted(measured, PREDICTED, xy_um=xy, genes=GENES, thumbnail=WHITE)
    figure.canvas.draw()
    np.testing.assert_array_equal(measured, MEASURED)
    np.testing.assert_array_equal(xy, XY)


def test_what_does_not_fit_is_told():
    with pytest.raises(ShapeError, match=r"predicted must have shape \(n_spots, n_genes\) = \(24, 2\), got \(24, 1\)"):
        pl.measured_beside_predicted(MEASURED, PREDICTED[:, :1], xy_um=XY, genes=GENES)
    with pytest.raises(ShapeError, match=r"width must have shape .* got \(24,\)"):
        pl.measured_beside_predicted(MEASURED, PREDICTED, xy_um=XY, genes=GENES, width=np.ones(24))
    with pytest.raises(ShapeError, match=r"xy_um must have shape \(n_spots, 2\) with at least one spot, got \(24, 3\)"):
        pl.expression_map(MEASURED, np.zeros((24, 3)), genes=GENES)
    with pytest.raises(OptionError, match="genes must name 1 to 6 columns, got 7"):
        pl.measured_beside_predicted(np.ones((24, 7)), np.ones((24, 7)), xy_um=XY, genes=list("ABCDEFG"))

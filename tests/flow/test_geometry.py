"""Edge geometry: eigh as oracle, invariance on every layout, lattices without axes, shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histoflow._errors import ShapeError
from histoflow.flow import EdgeGeometry, edge_geometry


def frame_average(geometry):
    """Mean over frames of functions that no symmetry makes vanish, per edge."""
    u, v, distance = geometry.frames().unbind(dim=-1)
    return torch.stack([torch.cos(u + 2 * v), u**2 * v**2, torch.tanh(u + v + distance)]).mean(dim=-1)


def test_projections_are_eigh_coordinates_up_to_sign(places, connect):
    index, mask = connect(places["jittered"])
    geometry, compared = edge_geometry(places["jittered"], index, mask, dtype=torch.float64), 0
    for spot, (near, real) in enumerate(zip(index, mask, strict=True)):
        offset = places["jittered"][near[real]] - places["jittered"][spot]
        centred = offset - offset.mean(dim=0)
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        if (values[1] - values[0]) / values.sum() <= 0.02:
            continue
        compared += 1
        ours, oracle = geometry.projection[spot, real], centred @ vectors
        torch.testing.assert_close(ours * (ours * oracle).sum(dim=0).sign(), oracle, rtol=0, atol=1e-10)
        torch.testing.assert_close(geometry.distance[spot, real], offset.norm(dim=1))
    assert compared > 40


@given(angle=st.floats(-7, 7), mirror=st.booleans())
@settings(deadline=None, max_examples=15)
def test_frame_averages_do_not_see_rotation_mirror_or_shift(xy, connect, moved, angle, mirror):
    index, mask = connect(xy)
    here = edge_geometry(xy, index, mask)
    there = edge_geometry(moved(xy, angle, mirror), index, mask)
    torch.testing.assert_close(there.distance, here.distance, rtol=0, atol=1e-5)
    torch.testing.assert_close(frame_average(there), frame_average(here), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["square", "hexagonal", "rounded"])
def test_complete_rings_have_no_axes_and_are_averaged(places, connect, layout):
    xy = places[layout]
    index, mask = connect(xy)
    u, v = edge_geometry(xy, index, mask).projection[24].unbind(dim=-1)
    torch.testing.assert_close(u, v, rtol=0, atol=0)
    radius = (xy[index[24]] - xy[24]).norm(dim=1) * mask[24]
    torch.testing.assert_close(torch.hypot(u, v), radius.float(), rtol=0, atol=0.01)


def test_other_neighbourhoods_keep_their_axes(places, connect):
    index, mask = connect(places["hexagonal"])
    u, v = edge_geometry(places["hexagonal"], index, mask).projection[0].unbind(dim=-1)
    assert (u - v)[mask[0]].abs().max() > 0.1


def test_masked_places_hold_zeros_and_change_nothing(places):
    xy = places["jittered"][:4]
    index, mask = torch.tensor([[1, 2, 3]] * 4), torch.tensor([[True, True, False]] * 4)
    geometry = edge_geometry(xy, index, mask)
    assert (geometry.projection[:, 2] == 0).all()
    assert (geometry.distance[:, 2] == 0).all()
    short = edge_geometry(xy, index[:, :2], mask[:, :2])
    torch.testing.assert_close(geometry.projection[:, :2], short.projection)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_has_the_dtype_asked_for(places, connect, dtype):
    assert {part.dtype for part in edge_geometry(places["square"], *connect(places["square"]), dtype=dtype)} == {dtype}


def test_frames_are_the_four_sign_choices():
    frames = EdgeGeometry(torch.tensor([[[2.0, 3.0]]]), torch.tensor([[5.0]])).frames()
    assert sorted(frames[0, 0].tolist()) == [[-2, -3, 5], [-2, 3, 5], [2, -3, 5], [2, 3, 5]]


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((4, 3), (4, 2), (4, 2)), r"xy has shape \(4, 3\); give x and y"),
        (((4, 2), (4, 2), (4, 3)), r"index has shape \(4, 2\) and mask \(4, 3\); both must be \(4, K\)"),
        (((4, 2), (5, 2), (5, 2)), r"index has shape \(5, 2\) and mask \(5, 2\); both must be \(4, K\)"),
    ],
)
def test_wrong_shapes_are_named(shapes, text):
    xy, index, mask = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ShapeError, match=text):
        edge_geometry(xy, index.long(), mask.bool())

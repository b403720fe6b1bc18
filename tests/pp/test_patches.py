"""Embeddings of given patches: each row of its own patch alone, resampled, cached by content, resumed."""

import numpy as np
import pytest
from PIL import Image

from histoflow._errors import ShapeError
from histoflow.pp import Encoder, blocks, embed_patches

PATCH_PX = 8


class Counted:
    """Mean colours and the mean of each quarter, counting the patches it is given."""

    def __init__(self):
        self.n_patches = 0

    def __call__(self, patches):
        self.n_patches += len(patches)
        small = patches.float().unflatten(1, (2, -1)).unflatten(3, (2, -1))
        return small.mean((2, 4)).flatten(1)


def encoder_of(function, name="quarters"):
    return Encoder.from_callable(function, name=name, patch_px=PATCH_PX, mean=None, std=None, licence="none")


@pytest.fixture
def counted():
    function = Counted()
    encoder = encoder_of(function)
    function.n_patches = 0
    return function, encoder


def images(n_patches=20, side=24):
    return np.random.default_rng(0).integers(0, 256, (n_patches, side, side, 3), dtype=np.uint8)


def embedded(patches, encoder, tmp_path, content_id="a", **options):
    return embed_patches(patches, encoder, content_id=content_id, patch_um=112, cache_dir=tmp_path, **options)


def test_a_row_is_the_encoders_of_the_resampled_patch(counted, tmp_path):
    patches = images()
    found, made = embedded(patches, counted[1], tmp_path)
    small = [Image.fromarray(p).resize((PATCH_PX, PATCH_PX), Image.Resampling.BILINEAR) for p in patches]
    np.testing.assert_array_equal(found, counted[1](np.stack([np.asarray(image) for image in small])))
    assert (made["name"], made["patch_um"], made["context_um"], made["n_features"]) == ("quarters", [112.0], [], 12)


def test_patches_of_the_right_size_are_left_as_they_are(counted, tmp_path):
    patches = images(side=PATCH_PX)
    np.testing.assert_array_equal(embedded(patches, counted[1], tmp_path)[0], counted[1](patches))


def test_a_row_depends_on_its_own_patch_alone(counted, tmp_path):
    patches, order = images(), np.random.default_rng(1).permutation(20)[:7]
    whole, _ = embedded(patches, counted[1], tmp_path)
    part, _ = embedded(patches[order], counted[1], tmp_path, content_id="b", batch_size=3)
    np.testing.assert_array_equal(part, whole[order])


def test_what_is_cached_is_not_encoded_again(counted, tmp_path):
    function, encoder = counted
    first, made = embedded(images(), encoder, tmp_path)
    again, made_again = embedded(images(), encoder, tmp_path)
    np.testing.assert_array_equal(first, again)
    assert made == made_again
    assert function.n_patches == 20
    embedded(images(), encoder, tmp_path, content_id="b")
    assert function.n_patches == 40


def test_an_interrupted_run_is_taken_up_where_it_stopped(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 6)
    function, encoder = counted

    class Torn:
        shape = (20, 24, 24, 3)

        def __getitem__(self, some):
            if some.start >= 12:
                raise KeyboardInterrupt
            return images()[some]

    with pytest.raises(KeyboardInterrupt):
        embedded(Torn(), encoder, tmp_path)
    done = function.n_patches
    assert done == 12
    found, _ = embedded(images(), encoder, tmp_path)
    assert function.n_patches == 20
    np.testing.assert_array_equal(found, encoder_of(Counted())(np.stack([_small(p) for p in images()])))


def _small(patch):
    return np.asarray(Image.fromarray(patch).resize((PATCH_PX, PATCH_PX), Image.Resampling.BILINEAR))


def test_another_encoder_is_told_apart(counted, tmp_path):
    other = encoder_of(Counted(), name="other")
    assert embedded(images(), other, tmp_path)[1]["id"] != embedded(images(), counted[1], tmp_path)[1]["id"]


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (4, 8, 9, 3), (4, 8, 8), (4, 8, 8, 4)])
def test_what_is_not_square_rgb_is_refused(counted, tmp_path, shape):
    with pytest.raises(ShapeError, match=r"patches have shape .*wanted \(n_patches, side, side, 3\)"):
        embedded(np.zeros(shape, np.uint8), counted[1], tmp_path)

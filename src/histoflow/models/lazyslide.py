"""An estimator inside LazySlide: `zs.tl.feature_prediction(wsi, as_lazyslide_model(model, …))`."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from histoflow._errors import EncoderMismatchError, MissingDependencyError, NotFittedError, OptionError, ShapeError
from histoflow._keys import EMBEDDINGS, SPATIAL, SPATIAL_UM, UNS
from histoflow.models.base import Estimator

_SAME_SIZE = 0.02


def as_lazyslide_model(model: Estimator, *, mpp: float | tuple[float, float], tile_px: float) -> Any:
    """Wrap a fitted estimator as a model that LazySlide's `feature_prediction` runs on a feature table.

    LazySlide hands over features and the upper left corners of the tiles in level-0 pixels, and neither scale nor
    pieces of tissue: scale and size are given here, and the graph of `stflow` takes all tiles for one piece.

    Parameters
    ----------
    model
        A fitted estimator that looks at images. The feature table must be made by `hf.embed` with its encoder.
    mpp
        µm per level-0 pixel of the slide, one number or (x, y).
    tile_px
        Side of the tiles in level-0 pixels.

    Returns
    -------
    A `lazyslide_models.base.FeaturePredictionModel`, whose `predict(features, coords)` returns a dictionary of gene to
    log1p expression, shape (n_tiles,), on the model's scale.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    OptionError
        If it looks at no image or at super-pixels, or a size is not a positive number.
    EncoderMismatchError
        If the tiles cover another µm size than the patches of the model.
    MissingDependencyError
        If LazySlide's models are not installed.
    """
    made, scale = _checked(model, mpp, tile_px)

    class Wrapped(_base()):  # type: ignore[misc]
        needs_coords = True
        whole_slide = True
        features_model_name = model.encoder
        name = f"histoflow-{model.method}"

        def __init__(self) -> None:
            self.model = model

        def get_transform(self) -> None:
            return None

        def to(self, device: Any) -> Any:
            return self

        def try_compile(self, **options: Any) -> bool:
            return False

        def predict(self, features: Any, coords: Any = None) -> dict[str, NDArray[np.float32]]:
            if coords is None:
                raise ShapeError("this model needs the places of the tiles; call it through zs.tl.feature_prediction")
            tiles = _tiles(_array(features), _array(coords) + tile_px / 2, scale, made)
            predicted = model.predict(tiles)
            return dict(zip(predicted.var_names, np.asarray(predicted.X).T, strict=True))

    return Wrapped()


def _checked(
    model: Estimator, mpp: float | tuple[float, float], tile_px: float
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """How the model's embeddings were made, and µm per pixel in x and y."""
    if model.panel_ is None:
        raise NotFittedError(f"{type(model).__name__} is not fitted; call fit first, or hf.models.load")
    if model.encoder is None or not model.embedding_:
        raise OptionError(f"model {model.method} looks at no image; use hest_fm or stflow")
    if model.dense:
        raise OptionError(
            f"model {model.method} looks at super-pixels, which LazySlide does not hand over; use hf.super_resolve"
        )
    scale = np.broadcast_to(np.asarray(mpp, dtype=np.float64), 2)
    if not ((scale > 0) & np.isfinite(scale)).all() or not tile_px > 0:
        raise OptionError(f"mpp is {mpp} and tile_px {tile_px}; give both above 0")
    side, wanted = tile_px * float(np.sqrt(scale.prod())), float(min(model.embedding_["patch_um"]))
    if abs(side / wanted - 1) > _SAME_SIZE:
        raise EncoderMismatchError(
            f"tiles of {tile_px:g} pixels are {side:.1f} µm wide, the patches of the model {wanted:g} µm; "
            f"lay tiles of {wanted:g} µm with hf.tile, or check mpp"
        )
    return model.embedding_, scale


def _tiles(
    features: NDArray[np.float32], xy: NDArray[np.float64], mpp: NDArray[np.float64], made: dict[str, Any]
) -> AnnData:
    """A section without genes of features and centres."""
    if xy.shape != (len(features), 2):
        raise ShapeError(f"coords must have shape ({len(features)}, 2), one place for each tile, got {xy.shape}")
    tiles = AnnData(shape=(len(features), 0))
    tiles.obs_names = [f"tile_{number}" for number in range(len(features))]
    tiles.obsm[SPATIAL], tiles.obsm[SPATIAL_UM] = xy, xy * mpp
    tiles.obsm[str(made["name"])] = features
    tiles.uns[UNS] = {"section": "tiles", EMBEDDINGS: {str(made["name"]): made}}
    return tiles


def _array(values: Any) -> NDArray[Any]:
    """A tensor, on whatever device, or anything else as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _base() -> Any:
    try:
        from lazyslide_models.base import FeaturePredictionModel
    except (ImportError, RuntimeError) as err:  # torchvision of another build raises RuntimeError
        raise MissingDependencyError(
            f"LazySlide's models cannot be imported ({err}); install matching torch and torchvision, then lazyslide"
        ) from err
    return FeaturePredictionModel

"""Let a torchvision be imported that was built against another torch: for tests, benchmarks and the docs alone.

Such a torchvision lacks its compiled operators and fails on import with RuntimeError. With the two operators declared
that it refers to by name, its transforms and the libraries on it (timm, LazySlide's models) work; its own detection
functions do not. Importing this module does it; where torchvision is whole or absent, nothing happens.
"""

import sys
from importlib import import_module

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare() -> torch.library.Library:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + _SCHEMA)
    return declared


DECLARED = None  # kept here: the operators go when the library object goes
try:
    import_module("torchvision")
except ImportError:
    pass
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    DECLARED = _declare()
    import_module("torchvision")

"""Stand in for einops where it is not installed: the five patterns that LazySlide's STPath names, and no other.

Importing this module does it; where einops is installed, nothing happens.
"""

import sys
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

_PATTERNS = {
    "... d -> (...) d": lambda t: t.flatten(0, -2),
    "b n (h d) -> b h n d": lambda t, h: t.unflatten(2, (h, -1)).transpose(1, 2),
    "b n m d -> (b n) m d": lambda t: t.flatten(0, 1),
    "b n m -> (b n) m": lambda t: t.flatten(0, 1),
    "(b n) m h -> b h n m": lambda t, b, n: t.unflatten(0, (b, n)).permute(0, 3, 1, 2),
}


def rearrange(tensor: Tensor, pattern: str, **sizes: int) -> Tensor:
    """As einops has it."""
    return _PATTERNS[pattern](tensor, **sizes)


if find_spec("einops") is None:
    sys.modules["einops"] = ModuleType("einops")
    sys.modules["einops"].rearrange = rearrange

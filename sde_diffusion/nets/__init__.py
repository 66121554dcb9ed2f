"""Networks: a U-Net for series, images and volumes, and a residual MLP for rows of numbers.

Both are called as ``network(x, c, labels=None)`` and both are 0 until they are trained.
"""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

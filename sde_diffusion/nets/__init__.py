"""Networks: a U-Net and a transformer for series, images and volumes, an MLP for rows of numbers.

All are called as ``network(x, c, labels=None)`` and all are 0 until they are trained.
"""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

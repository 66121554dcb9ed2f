"""Networks: a U-Net for images and a residual MLP for rows of numbers.

Both are called as ``network(x, c, labels=None)`` and both are 0 until they are trained.
"""

from __future__ import annotations

from sde_diffusion.nets.mlp import MLP
from sde_diffusion.nets.unet import UNet

__all__ = ["MLP", "UNet"]

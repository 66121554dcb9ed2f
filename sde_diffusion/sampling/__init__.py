"""Draws of a model, and the map that a sampler is: latents, inverses, grids and costs."""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

"""The discrete DDPM: a chain of a linear SDE, the variances of its steps and its bound."""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

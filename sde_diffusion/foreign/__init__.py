"""Models of other programs: their weights read without executing anything, their conventions."""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

"""Solvers: one file per method or family, all on the base class `Solver` of `sde_diffusion`.

They are loaded when first used; the stub beside this file is their list.
"""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

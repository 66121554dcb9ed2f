"""The processes of one run: who they are, that they agree, and what becomes of a lost one."""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

"""Pictures of samples, runs, comparisons, orders and likelihoods, drawn without a display.

Every function returns its figure, for a notebook, and writes it as PNG where there is a path.
"""

from __future__ import annotations

from sde_diffusion._exports import exported

__getattr__, __dir__, __all__ = exported(__name__, __file__)

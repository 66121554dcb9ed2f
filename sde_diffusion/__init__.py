"""Score-based generative modelling with stochastic differential equations, in numbers to trust.

Everything public is found here and loaded when first used, so that the command line answers at
once: ``from sde_diffusion import VPSDE, ReverseSDE, sample``. The list is the stub beside this
file. Solvers live in `sde_diffusion.solvers`.
"""

from __future__ import annotations

from sde_diffusion._exports import exported
from sde_diffusion._version import __version__ as __version__

__getattr__, __dir__, __all__ = exported(__name__, __file__)

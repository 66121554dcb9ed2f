"""The command line: `sde-diffusion` and `python -m sde_diffusion.cli`."""

from __future__ import annotations

"""Entry point of `python -m sde_diffusion.cli`."""

from __future__ import annotations

from sde_diffusion.cli.main import main

if __name__ == "__main__":
    main()

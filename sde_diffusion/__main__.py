"""Entry point of `python -m sde_diffusion`, the same program as `sde-diffusion`.

It belongs to the command line and stands here because Python looks for it here; nothing imports
it.
"""

from __future__ import annotations

from sde_diffusion.cli.main import main

if __name__ == "__main__":
    main()

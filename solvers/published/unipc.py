"""UniPC with the start of published code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sde_diffusion.solvers._shared.unipc import UniPCBase


@final
@dataclass(frozen=True)
class UniPCPublished(UniPCBase):
    """UniPC-p as published: `UniPC`, but step i of the first p is UniPC-i.

    Order: 2 for p = 1, else 3: the first step, once corrected, has an error O(h³), though one so
    small that for p = 3 and 4 the order p + 1 is seen first. NFE: 1 a step.
    Errors: ValueError for another p or variant, TypeError for an SDE that is not linear.
    Source: Zhao et al. 2023 (UniPC), algorithm 1 and their code, without the lower orders at the
    end of the grid.

    >>> UniPCPublished(p=4).order
    3
    """

    certified: ClassVar[tuple[dict[str, Any], ...]] = ({"p": 1}, {"p": 2})

    @property
    def order(self) -> int:
        """The order of the end state."""
        return min(self.p + 1, 3)

"""Conditions of a network, filled in."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from sde_diffusion._check import wrong_value


@final
class Labelled(nn.Module):
    """A class-conditional network with its labels filled in."""

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.network = network
        self.labels = labels

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return network(x, c, labels)."""
        labels = self.labels.to(x.device)
        if labels.ndim and labels.shape != c.shape:
            raise wrong_value(
                "ScoreModel",
                "labels",
                f"be one, or {len(c)} for this batch",
                f"{len(labels)} labels",
                "pass as many as samples",
            )
        out: Tensor = self.network(x, c, labels.expand(x.shape[0]))
        return out

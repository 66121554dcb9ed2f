"""Models whose networks compute in half precision, between states of full precision."""

from __future__ import annotations

import copy
from typing import Any, Final, TypeVar, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import an_object, wrong_value
from sde_diffusion.models.conditioned import Enclosing, around, rows_of
from sde_diffusion.models.score import LearnedScore
from sde_diffusion.scores import tensor_in

ModelT = TypeVar("ModelT", bound=LearnedScore)
HALF: Final = (torch.bfloat16, torch.float16)


@final
class Rounded(Enclosing):
    """A network with weights and activations in half precision, called with states in another.

    States and conditions are rounded on their way in and its output is converted back; times and
    levels of noise stay as they are, as the network's own embedding takes them.

    Arguments:
        network: the network, whose weights are in ``dtype``.
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def rows(self, index: Tensor) -> Rounded:
        found: Rounded = around(self, rows_of(self.network, index))
        return found

    def forward(self, x: Tensor, c: Tensor, *more: Tensor, **named: Tensor) -> Tensor:
        """Return network(x, c, …) in x's dtype."""
        others = [self._in(each) for each in more]
        by_name = {name: self._in(each) for name, each in named.items()}
        found: Any = tensor_in(self.network(x.to(self.dtype), c, *others, **by_name))
        rounded: Tensor = found.to(x.dtype)
        return rounded

    def _in(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


def in_precision(model: ModelT, dtype: torch.dtype) -> ModelT:
    """Return the model with its network in half precision; states and coefficients stay as are.

    Its weights are rounded copies. `rounding_errors` tells what that costs.

    Errors: TypeError for what is no learned score, ValueError for another dtype.

    >>> from sde_diffusion import MLP, ScoreModel, VPSDE
    >>> model = in_precision(ScoreModel(MLP(2), VPSDE()).eval(), torch.bfloat16)
    >>> model(torch.zeros(1, 2), torch.tensor(0.5)).dtype
    torch.float32
    """
    an_object("in_precision", "model", model, LearnedScore, "pass one that is learned")
    if dtype not in HALF:
        rule = "be torch.bfloat16 or torch.float16"
        raise wrong_value("in_precision", "dtype", rule, dtype, "pass torch.bfloat16")
    return model._around(Rounded(copy.deepcopy(model.network).to(dtype), dtype))

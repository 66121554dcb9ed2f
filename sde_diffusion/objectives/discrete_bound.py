"""Training by the evidence lower bound of a discrete chain, whose variance may be learned."""

from __future__ import annotations

import math
from abc import ABC
from typing import Final, final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._tensors import flat_sum
from sde_diffusion.coefficients import Levels
from sde_diffusion.counting import CountedScore
from sde_diffusion.ddpm.chain import Chain
from sde_diffusion.ddpm.discrete_bound import step_bound
from sde_diffusion.ddpm.variances import LearnedVariance, predicted
from sde_diffusion.dynamics import check_coupling
from sde_diffusion.forms import converted
from sde_diffusion.lattices import lattice
from sde_diffusion.likelihood.decoders import BinDecoder, Decoder, GaussianDecoder
from sde_diffusion.models.score import ScoreModel
from sde_diffusion.objectives.base import Batch, Objective
from sde_diffusion.objectives.spacings import Spacing
from sde_diffusion.time_distributions import LatticeTimes

_SHARE: Final = 1e-3  # of the bound in the hybrid


class Chained(Objective, ABC):
    """A loss at random steps k = 1 … N of the chain with the times k/N of the horizon.

    Step k has the quantiles u in [(k − 1)/N, k/N), so that a spacing of N bins is one over steps.
    Integer data are taken at the centres of their bins, real data as they are.
    """

    def __init__(self, chain_steps: int, spacing: Spacing) -> None:
        super().__init__(LatticeTimes(chain_steps), spacing, 0.0)
        self.chain_steps = chain_steps

    def check(self, model: ScoreModel) -> None:
        check_coupling(type(self).__name__, "model", model)

    def _states(self, model: ScoreModel, batch: Batch) -> tuple[Chain, Tensor, Tensor, Tensor]:
        """Return the chain, the steps k, the data x0 and the states x_k of a batch."""
        chain = Chain(model.sde, lattice(self.chain_steps) * model.sde.horizon)
        k = (batch.t.cpu() / model.sde.horizon * self.chain_steps).round().long()
        spec = model.data
        x0 = batch.x0
        if spec is not None and spec.levels is not None:
            x0 = spec.encode(spec.decode(x0), 0.5).to(x0)
        return chain, k, x0, chain.perturb(x0, k, batch.eps)

    def _bits(self, nats: Tensor, x0: Tensor) -> Tensor:
        """Return N times terms of the bound, given in nats, in bits per dimension."""
        return nats * (self.chain_steps / (x0[0].numel() * math.log(2)))


@final
class Vlb(Chained):
    """L_vlb: N L_{k−1} at random k, whose mean is the bound L_{N−1} + … + L_0 of `vlb`.

    L_T, which does not depend on the model, is left out. The variance is the one that the model
    learns, or β_k; L_0 is that of grey levels by a `BinDecoder`, or of a density.

    Units: bits per dimension.
    Source: Ho et al. 2020, equation 5; Nichol & Dhariwal 2021, section 3.3.

    >>> from sde_diffusion import VPSDE
    >>> from sde_diffusion.objectives.spacings import Stratified
    >>> Vlb(4, Stratified()).draw(VPSDE(), 4, torch.Generator().manual_seed(0)).t.tolist()
    [0.25, 0.5, 0.75, 1.0]
    """

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        chain, k, x0, x = self._states(model, batch)
        score = CountedScore(model)
        at = Levels(chain.alpha[k], chain.sigma[k])
        x0_hat, variance = predicted(score, x, chain.times[k], at, None)
        decoder = decoder_of(model)
        return self._bits(step_bound(x0, x0_hat, x, chain, k, variance, decoder), x0)


@final
class Hybrid(Chained):
    """L_hybrid = L_simple + .001 L_vlb, where L_vlb, its mean held fixed, trains the variance.

    L_simple is ‖eps − eps_θ‖²/D.

    Units: L_vlb in bits per dimension.
    Errors: ValueError for a model without a learned variance.
    Source: Nichol & Dhariwal 2021, equation 16.

    >>> from sde_diffusion.objectives.spacings import Stratified
    >>> from sde_diffusion import MLP, VPSDE
    >>> Hybrid(4, Stratified()).check(ScoreModel(MLP(2), VPSDE()))
    Traceback (most recent call last):
    ValueError: Hybrid: model must learn a variance, got variance='fixed'; pass ScoreModel(…, \
variance='learned') and a network of twice the outputs
    """

    def check(self, model: ScoreModel) -> None:
        super().check(model)
        if model.variance != "learned":
            raise wrong_value(
                "Hybrid",
                "model",
                "learn a variance",
                f"variance={model.variance!r}",
                "pass ScoreModel(…, variance='learned') and a network of twice the outputs",
            )

    def forward(self, model: ScoreModel, batch: Batch) -> Tensor:
        chain, k, x0, x = self._states(model, batch)
        eps, v = model.with_fraction("eps", x, chain.times[k])
        at = Levels(chain.alpha[k], chain.sigma[k])
        # In float64: near alpha = 0 the division enlarges whatever eps was rounded by.
        x0_hat = converted("x0", "eps", eps.detach().double(), x.double(), at)
        variance = LearnedVariance(lambda x, t: v)  # noqa: ARG005
        bound = step_bound(x0, x0_hat, x, chain, k, variance, decoder_of(model))
        simple = flat_sum((batch.eps - eps).square()) / x0[0].numel()
        return simple + _SHARE * self._bits(bound, x0)


def decoder_of(model: ScoreModel) -> Decoder:
    """Return the decoder p(x_0 | x_1) of the model's data: of grey levels, or a density."""
    spec = model.data
    if spec is None or spec.levels is None:
        return GaussianDecoder()
    return BinDecoder(spec.encode(torch.arange(spec.levels), 0.5))

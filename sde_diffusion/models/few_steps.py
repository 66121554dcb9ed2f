"""Few-step models: a network that goes from x_t to x_s in one evaluation."""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import an_object, one_of, positive_number, wrong_type
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.models.conditioned import Enclosing, rows_of
from sde_diffusion.models.score import LearnedScore, ScoreModel, config_of, noise_number
from sde_diffusion.sde import LinearSDE

# What tells x0 of pure noise, from where a student starts: eps and the score do not.
STEP_PREDICTIONS: Final = ("v", "x0", "flow", "edm")


@final
class FewStepModel(LearnedScore):
    """The map f(x_t, t → s) of a flow, learned for whole steps: x_s = p x_t + q v_θ(x_t, t, s).

    It is the DDIM step with an x0 and an eps that know where the step ends,
    p = (alpha_s alpha_t + sigma_s sigma_t)/r² and q = (sigma_s alpha_t − alpha_s sigma_t)/r² with
    r² = alpha_t² + sigma_t². At s = t p is 1 and q is 0, bit for bit: p and q are c_skip and c_out
    of a consistency model, with cos and −sin of the angle for VP. For `RectifiedFlow`
    x_s = x_t − (t − s) u, u = eps − x0 the average velocity of mean flow. So one noun serves the
    regression of exact pairs, progressive distillation, consistency and mean flow.

    It is no score: `sample` takes it with `FewSteps` or `Renoised`, of any number of steps that it
    was trained for. The network is called as ``network(x, c)`` as that of a `ScoreModel`; where
    its ``config`` has ``times`` = 2, c is (B, 2), of t and s. One that is told t alone takes its
    steps to wherever it was trained to go, as the last time for consistency.

    Arguments:
        network: (B, *event), (B, times) to (B, *event).
        sde: the linear SDE of the noise.
        prediction: what the output means, of the step: "v", "x0", "flow" or "edm".
        sigma_data: the standard deviation of the data, for "edm".
        data: what the samples are, where that is known.

    Errors: TypeError for an SDE that is not linear; ValueError for a prediction that tells no x0
    in pure noise; TypeError where it is asked for a score.
    Source: Song et al. 2023 (Consistency models), equation 5; Lu & Song 2024, section 3;
    Salimans & Ho 2022, section 3; Geng et al. 2025, equation 3.

    >>> from sde_diffusion import MLP, RectifiedFlow
    >>> student = FewStepModel(MLP(2, times=2), RectifiedFlow())
    >>> t, s = torch.tensor([1.0, 0.25], dtype=torch.float64)
    >>> student.jump(torch.ones(1, 2), t, s).tolist()  # v is 0 at first, x0 = 0 and eps = x_1
    [[0.25, 0.25]]
    """

    sde: LinearSDE

    def __init__(
        self,
        network: nn.Module,
        sde: LinearSDE,
        prediction: str = "v",
        *,
        sigma_data: float = 0.5,
        data: DataSpec | None = None,
    ) -> None:
        super().__init__(network, data)
        an_object("FewStepModel", "sde", sde, LinearSDE, "pass for example VPSDE()")
        one_of("FewStepModel", "prediction", prediction, STEP_PREDICTIONS)
        positive_number("FewStepModel", "sigma_data", sigma_data)
        self.sde = sde
        self.prediction = prediction
        self.sigma_data = sigma_data

    @property
    def times(self) -> int:
        """How many times the network is told of: 2 where its ``config`` says so, else 1."""
        network = self.network
        while isinstance(network, Enclosing):
            network = network.network
        return int((config_of(network) or {}).get("times", 1))

    def towards(self, s: Tensor) -> ScoreModel:
        """Return the x0 and eps of steps to s, whose DDIM step is the map: they are no score.

        Shapes: s () or (B,).
        """
        network = self.network
        if self.times == 2:
            network = _Towards(network, noise_number(self, s))
        model = ScoreModel(network, self.sde, self.prediction, sigma_data=self.sigma_data)
        return model.train(self.training)

    def jump(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the state at s of the one at t, in one evaluation.

        Arguments:
            x: the states; (B, *event).
            t: their times; () or (B,).
            s: the times to go to; () or (B,).
        """
        return self.towards(s).jump(x, t, s)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002  (a score's)
        raise wrong_type(
            "FewStepModel",
            "solver",
            "take its steps, since it is no score",
            "one that asks for the score",
            "sample it with FewSteps(), --solver few-steps, or of a consistency model with "
            "Renoised(), --solver renoised",
        )

    def _around(self, network: nn.Module) -> FewStepModel:
        model = FewStepModel(
            network, self.sde, self.prediction, sigma_data=self.sigma_data, data=self.data
        )
        return model.train(self.training)


@final
class _Towards(Enclosing):
    """A network of two times with that of the step's end filled in."""

    def __init__(self, network: nn.Module, end: Tensor) -> None:
        super().__init__()
        self.network = network
        self.end = end

    def rows(self, index: Tensor) -> _Towards:
        end = self.end[index.to(self.end.device)] if self.end.ndim else self.end
        return _Towards(rows_of(self.network, index), end)

    def forward(self, x: Tensor, c: Tensor) -> object:
        """Return network(x, (c, end))."""
        return self.network(x, torch.stack([c, self.end.to(c).expand(c.shape)], 1))

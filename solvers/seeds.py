"""SEEDS: singlestep exponential integrators of the reverse SDE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.multistep import from_noise
from sde_diffusion.noise import Noise
from sde_diffusion.solver import OneStep
from sde_diffusion.solvers._shared.checks import choice
from sde_diffusion.solvers._shared.singlestep_sde import staged


@final
@dataclass(frozen=True)
class SEEDS(OneStep[ReverseSDE]):
    """SEEDS-1, -2 and -3: DPM-Solver's stages with the noise up to each, in data or noise form.

    x0: x_s = (σ_s/σ_t) e^{−τ²h} x_t + α_s ∫ (1+τ²) e^{−(1+τ²)(λ_s−λ)} x0 dλ + σ_s √(1−e^{−2τ²h}) z
    eps: x_s = (α_s/α_t) x_t − (1+τ²) σ_s ∫ e^{λ_s−λ} eps dλ + τ σ_s √(e^{2h} − 1) z

    with τ the noise scale and h = λ_s − λ_t. 1 stage: the prediction is taken for constant.
    2: for its value at λ_t + ½h. 3: for the line through its values at λ_t and λ_t + ⅔h, the
    latter reached by the line through λ_t and λ_t + ⅓h. The noise of a stage is that of the stage
    before, carried on by the SDE, plus a new draw for the stretch between. (Published code
    exchanges the factors of two of the three draws.)

    τ = 0 is the singlestep DPM-Solver of that order, or DPM-Solver++ for the form x0, whose step
    is exact where E[x0 | x] is constant. The form eps is the paper's own, and diverges in steps of
    h > ½ or so: its noise outgrows σ_s, and only eps takes it back.

    Order: weak 1 for one stage, else 2; strong 1, as z stands for an integral ∫ e^{…} dw. NFE: the
    stages, a step; 1 for a step to σ_s = 0.
    Errors: ValueError for other stages or forms, TypeError for an SDE that is not linear.
    Source: Gonzalez et al. 2023 (SEEDS), algorithms 1 to 4, there for τ = 1.

    >>> import torch
    >>> from sde_diffusion import Gaussian, VPSDE, sample
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).diffused(VPSDE())
    >>> sample(model, SEEDS(stages=2), (4, 2), steps=5).nfe
    10
    """

    stages: int = 3
    form: str = "x0"
    dynamics = ReverseSDE
    strong_order: ClassVar[float] = 1
    certified: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {"stages": stages, "form": form} for form in ("x0", "eps") for stages in (1, 2, 3)
    )

    def __post_init__(self) -> None:
        choice("SEEDS", "stages", (1, 2, 3), self.stages)
        choice("SEEDS", "form", ("eps", "x0"), self.form)

    @property
    def order(self) -> int:
        """The weak order."""
        return min(self.stages, 2)

    @property
    def evaluations(self) -> int:
        """Evaluations a step."""
        return self.stages

    def step(self, dynamics: ReverseSDE, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        known = linear("SEEDS", dynamics)
        score = dynamics.score
        if known.level(t).pure_noise:
            return from_noise(dynamics, x, t, s, noise)
        if known.level(s).sigma == 0:
            return score.predict("x0", x, t, known.level(t)) * known.level(s).alpha
        m = score.predict(self.form, x, t, known.level(t))
        return staged(self.form, self.stages, dynamics, x, m, t, s, noise)

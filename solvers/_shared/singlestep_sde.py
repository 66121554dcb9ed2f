"""One-step exponential integrators of the reverse SDE in λ, with noise up to each stage."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from sde_diffusion.dynamics import ReverseSDE, linear
from sde_diffusion.noise import Noise
from sde_diffusion.solvers._shared.exponential_sde import kernel, phis

# Row i: the place r of stage i between λ_t and λ_s, and the two predictions through which the line
# goes that leads there from λ_t; the same one twice stands for a constant.
_ROWS: Final = {
    1: ((1, 0, 0),),
    2: ((1 / 2, 0, 0), (1, 1, 1)),
    3: ((1 / 3, 0, 0), (2 / 3, 0, 1), (1, 0, 2)),
}


def staged(
    form: str,
    stages: int,
    dynamics: ReverseSDE,
    x: Tensor,
    m: Tensor,
    t: Tensor,
    s: Tensor,
    noise: Noise,
) -> Tensor:
    """Return the state at s, by stages − 1 evaluations more.

    Arguments:
        form: "x0" or "eps", the form of the predictions.
        stages: their number, 1, 2 or 3.
        dynamics: the reverse SDE with its noise scale.
        x: the state at t, (B, *event).
        m: the prediction at (x, t), (B, *event).
        t: the time of the state, ().
        s: the time to which the step goes, ().
        noise: the source of the normals, one for each stage.
    """
    known = linear("SEEDS", dynamics)
    tau = dynamics.noise_scale
    at = known.level(t)
    to = known.level(s)
    found = [m]
    places = [0.0]
    y = x
    drawn = None
    before = t
    here = at
    for r, j, k in _ROWS[stages]:
        if len(found) <= k:
            found.append(dynamics.score.predict(form, y, before, here))
        u = s if r == 1 else known.time(at.lambda_ + r * (to.lambda_ - at.lambda_))
        level = known.level(u)
        a, b, c, _ = kernel(form, at, level, tau)
        one, two, _ = phis(c)
        slope = two * r / (places[k] - places[j]) if j != k else 0.0
        y = (x * a).add_(found[j], alpha=b * (one - slope))
        if slope:
            y.add_(found[k], alpha=b * slope)
        if tau:  # the integral up to u of one noise, not a draw of its own for each stage
            a, _, _, d = kernel(form, here, level, tau)
            z = noise.unit(x, before, u) * d
            drawn = z if drawn is None else z.add_(drawn, alpha=a)
            y.add_(drawn)
        places.append(r)
        before = u
        here = level
    return y

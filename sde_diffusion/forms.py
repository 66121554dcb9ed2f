"""The forms of a prediction, one another's linear images.

With x_t = alpha x0 + sigma eps: score = −eps/sigma, x0 = (x_t − sigma eps)/alpha,
v = alpha eps − sigma x0, flow = eps − x0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from torch import Tensor

from sde_diffusion._check import wrong_value
from sde_diffusion._tensors import expand
from sde_diffusion.coefficients import Level, Levels

Number: TypeAlias = "float | Tensor"
# (alpha, sigma) -> (p, q) of p x_t + q output
Conversion: TypeAlias = Callable[[Any, Any], tuple[Number, Number]]

# Rows: what the network predicts. Columns: what is asked for. v = alpha eps − sigma x0, and its
# row divides by alpha² + sigma², so that it holds outside the VP family too; so does the row of
# flow = eps − x0, the velocity of `RectifiedFlow`.
FORMS: Final[dict[str, dict[str, Conversion]]] = {
    "eps": {
        "eps": lambda a, s: (0.0, 1.0),  # noqa: ARG005
        "x0": lambda a, s: (1 / a, -s / a),
        "v": lambda a, s: (-s / a, (a * a + s * s) / a),
    },
    "x0": {
        "eps": lambda a, s: (1 / s, -a / s),
        "x0": lambda a, s: (0.0, 1.0),  # noqa: ARG005
        "v": lambda a, s: (a / s, -(a * a + s * s) / s),
    },
    "v": {
        "eps": lambda a, s: (s / (a * a + s * s), a / (a * a + s * s)),
        "x0": lambda a, s: (a / (a * a + s * s), -s / (a * a + s * s)),
        "v": lambda a, s: (0.0, 1.0),  # noqa: ARG005
    },
    "score": {
        "eps": lambda a, s: (0.0, -s),  # noqa: ARG005
        "x0": lambda a, s: (1 / a, s * s / a),
        "v": lambda a, s: (-s / a, -s * (a * a + s * s) / a),
    },
    "flow": {
        "eps": lambda a, s: (1 / (a + s), a / (a + s)),
        "x0": lambda a, s: (1 / (a + s), -s / (a + s)),
        "v": lambda a, s: ((a - s) / (a + s), (a * a + s * s) / (a + s)),
    },
}


def check_told(prediction: str, form: str, at: Level | Levels) -> None:
    """Refuse to make x0 or v of what says nothing of x0 in pure noise: eps, the score, EDM's F.

    Arguments:
        prediction: the form of the output.
        form: "eps", "x0" or "v", the form that is asked for.
        at: alpha and sigma at the state's time.
    """
    silent = prediction in ("eps", "score", "edm") and form != "eps"
    if silent and isinstance(at, Level) and at.alpha == 0:
        raise wrong_value(
            "score",
            "t",
            f"have alpha above 0 where the model gives {prediction}, which then tells no x0",
            "alpha = 0",
            "start the grid at sde.horizon or before, or use a model that predicts v, x0 or flow",
        )


def edm_form(form: str, alpha: Number, sigma: Number, d: float) -> tuple[Number, Number]:
    """Return (p, q) of p x_t + q F for the inner network's output F, with d = sigma_data.

    In y = x/alpha and s = sigma/alpha, x0 = d²/(s²+d²) y + s d/√(s²+d²) F and
    eps = (y − x0)/s = s/(s²+d²) y − d/√(s²+d²) F. Made of x0 instead, eps would cancel where
    sigma is small.

    Arguments:
        form: "eps", "x0" or "v", the form that is asked for.
        alpha: the factor of x0 in x_t; a number, or of shape () or (B,).
        sigma: the standard deviation of the noise in x_t; in alpha's shape.
        d: the standard deviation of the data, sigma_data.

    Source: Karras et al. 2022, equation 7 and table 1 (c_skip and c_out), for x0.
    """
    s = sigma / alpha
    total = s * s + d * d
    root = d / total**0.5
    if form == "x0":
        return d * d / (total * alpha), s * root
    if form == "eps":
        return s / (total * alpha), -root
    return s * (1 - d * d) / total, -root * (alpha + s * sigma)


def converted(form: str, prediction: str, out: Tensor, x: Tensor, at: Level | Levels) -> Tensor:
    """Return eps, x0 or v of an output that predicts another of them.

    Arguments:
        form: "eps", "x0" or "v", the form that is asked for.
        prediction: a key of `FORMS`, the form of ``out``.
        out: the network's output, (B, *event).
        x: the state x_t that it is of, (B, *event).
        at: alpha and sigma at the state's time.
    """
    check_told(prediction, form, at)
    return joined(FORMS[prediction][form](at.alpha, at.sigma), out, x)


def turned(x: Tensor, v: Tensor, at: Level | Levels, alpha: Number, sigma: Number) -> Tensor:
    """Return alpha x0 + sigma eps, with x0 and eps as x_t and v have them.

    Unlike (alpha/alpha_t) x_t + (sigma − alpha sigma_t/alpha_t) eps, it does not cancel where
    alpha_t is small, and is finite at alpha_t = 0.

    Arguments:
        x: the state x_t, (B, *event).
        v: v at (x, t), (B, *event).
        at: alpha and sigma at t.
        alpha: the factor of x0 in the result; a number, or of shape () or (B,).
        sigma: the factor of eps in the result, in alpha's shape.
    """
    return joined(turning(at, alpha, sigma), v, x)


def turning(at: Level | Levels, alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """Return (p, q) of `turned`, p x_t + q v: 1 and 0, bit for bit, where nothing turns."""
    # x0 = (alpha_t x_t − sigma_t v)/(alpha_t² + sigma_t²), eps = (sigma_t x_t + alpha_t v)/(…).
    total = at.alpha * at.alpha + at.sigma * at.sigma
    p = (alpha * at.alpha + sigma * at.sigma) / total
    q = (sigma * at.alpha - alpha * at.sigma) / total
    return p, q


def joined(weights: tuple[Number, Number], out: Tensor, x: Tensor) -> Tensor:
    """Return p x + q out."""
    p, q = weights
    if isinstance(q, Tensor):
        turned = expand(q, x) * out
        return turned + expand(p, x) * x if isinstance(p, Tensor) else turned
    p = float(p)
    q = float(q)
    if p == 0:  # as when the network predicts what is asked for
        return out if q == 1 else out * q
    return (x * p).add_(out, alpha=q)

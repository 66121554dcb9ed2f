"""RePaint: inpainting by a model without y, whose known part is drawn anew at every step.

A step of the reverse process is followed by a draw of the known pixels from q(x_s | y), in the
place of the model's. So that the others come to fit to them, the walk goes back into noise again
and again, a jump of several steps, and down once more.

Source: Lugmayr et al. 2022, algorithm 1 and its jumps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sde_diffusion._check import positive_integer, wrong_type
from sde_diffusion._tensors import check_dtype
from sde_diffusion.coefficients import Coefficients, Level, kernel
from sde_diffusion.counting import CountedScore
from sde_diffusion.inverse_problems.checks import check_posterior, decided_grid
from sde_diffusion.inverse_problems.measurement import Measurement
from sde_diffusion.inverse_problems.operators import Mask
from sde_diffusion.inverse_problems.particles import AncestralStep, PosteriorSamples
from sde_diffusion.noise import PerSampleNoise
from sde_diffusion.scores import ScoreLike


def repaint(
    model: ScoreLike,
    measurement: Measurement,
    event: Sequence[int],
    *,
    draws: int = 64,
    jump: int = 10,
    resamplings: int = 10,
    steps: int | None = None,
    grid: Tensor | None = None,
    seed: int = 0,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PosteriorSamples:
    """Return draws that RePaint makes for every row of y: near p(x0 | y), all of one weight.

    A known pixel y = x0 + sigma_y n is itself x0 at the level sigma/alpha = sigma_y: above it
    x_s = alpha y + (sigma² − alpha² sigma_y²)^½ z, below it the model alone goes on, once. At
    sigma_y → 0 that is the published q(x_s | x0 = y). The draws are biased however many steps
    there are, as hidden pixels meet known ones that were drawn without them; more resamplings
    help.

    Arguments:
        model: the score of the data.
        measurement: y of a `Mask`, one row a posterior.
        event: the shape of a sample.
        draws: of each posterior.
        jump: steps that a return to noise goes back; j.
        resamplings: how often each stretch of so many steps is walked in all; r, 1 for once.
        steps: along the `recommended` grid; 100 if there is no grid either.
        grid: the times instead, falling from noise to data; (steps + 1,).
        seed: of all noise.
        first: the number of the first measurement, where those of one run are sampled in parts.
        dtype: of the states.

    Shapes: result's x (Q, P, *event), with Q rows of y; its log_evidence is NaN, as none is known.
    NFE: steps and, of each return, another ``jump``.
    Errors: TypeError for an operator that is no `Mask`, or what is no model or measurement;
    ValueError for settings out of range.
    Source: Lugmayr et al. 2022, algorithm 1.

    >>> from sde_diffusion import Gaussian, VPSDE
    >>> prior = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])).diffused(VPSDE())
    >>> seen = Measurement(Mask(torch.tensor([True, False])), torch.tensor([[1.0]]), std=0.01)
    >>> found = repaint(prior, seen, (2,), draws=2000)
    >>> [round(v, 1) for v in found.mean[0].tolist()]  # y, and E[x_2 | x_1 = 1] = .8
    [1.0, 0.8]
    """
    check_posterior("repaint", model, measurement, event)
    mask = _mask(measurement)
    kept = mask.kept.to(model.device)
    for name, value in (("draws", draws), ("jump", jump), ("resamplings", resamplings)):
        positive_integer("repaint", name, value)
    std = measurement.gaussian_std("repaint")
    check_dtype("repaint", dtype)
    grid = decided_grid("repaint", model, steps, grid)
    score = CountedScore(model)
    known = Coefficients(model.linear_sde())
    levels = [known.level(t) for t in grid]
    count = len(measurement.y)
    grouped = (count, draws, *event)
    noise = PerSampleNoise.numbered(seed, first, count)
    x = model.linear_sde().prior().sample(noise, grouped, dtype=dtype, device=model.device)
    y = mask.adjoint(measurement.y.to(x))[:, None]
    with torch.no_grad():
        told = sum(_tells(at, std) for at in levels) - 1  # the last place at which y tells more
        for i, j in visits(len(grid) - 1, jump, resamplings, told):
            if j < i:
                a, b2 = kernel(levels[i], levels[j])
                x = a * x + math.sqrt(b2) * noise.normal(x)
                continue
            step = AncestralStep(levels[i], levels[j])
            x0 = score.predict("x0", x.flatten(0, 1), grid[i], levels[i]).view(grouped)
            x = step.mean(x0, x) + step.std * noise.normal(x)
            x = _replaced(x, y, kept, levels[j], std, noise)
    x = x / levels[-1].alpha
    zeros = torch.zeros(count, draws, dtype=torch.float64, device=x.device)
    none = torch.zeros(count, dtype=torch.int64)
    return PosteriorSamples(x, zeros, zeros[:, 0] + torch.nan, score.calls, none)


def visits(
    steps: int, jump: int, resamplings: int, told: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield the moves of the walk, from a place of the grid to another: on by 1, back by a jump.

    Arguments:
        steps: of the grid, whose places are 0 … steps.
        jump: how far a return to noise goes.
        resamplings: how often a stretch is walked.
        told: the last place from which the walk goes back; all of them may be if not given.
            Beyond it known pixels are no longer replaced, and walks to and fro would forget them.

    >>> [j for _, j in visits(5, jump=2, resamplings=2)]
    [1, 2, 0, 1, 2, 3, 4, 2, 3, 4, 5]
    """
    last = steps if told is None else told
    places = (at for at in range(steps - 1, jump - 1, -jump) if at <= last)
    left = dict.fromkeys(places, resamplings - 1)
    at = 0
    while at < steps:
        to = at - jump if left.get(at) else at + 1
        if to < at:
            left[at] -= 1
        yield at, to
        at = to


def _replaced(
    x: Tensor, y: Tensor, kept: Tensor, to: Level, std: float, noise: PerSampleNoise
) -> Tensor:
    """Return x with its known pixels drawn anew, where y tells of them more than x does.

    Arguments:
        x: the states; (Q, P, *event).
        y: the measurements, in the places of the known pixels; (Q, 1, *event).
        kept: which pixels are known; event.
        to: the level of the states.
        std: sigma_y.
        noise: where the draw comes from.
    """
    if not _tells(to, std):
        return x
    spread = math.sqrt(to.sigma**2 - (to.alpha * std) ** 2)
    return torch.where(kept, to.alpha * y + spread * noise.normal(x), x)


def _tells(at: Level, std: float) -> bool:
    """Return whether y tells more of the known pixels than a state of that level does."""
    return at.sigma > at.alpha * std


def _mask(measurement: Measurement) -> Mask:
    operator = measurement.operator
    if not isinstance(operator, Mask):
        raise wrong_type(
            "repaint",
            "measurement.operator",
            "be a Mask, whose pixels can be replaced",
            type(operator).__name__,
            "call sample_posterior, which takes any operator",
        )
    return operator

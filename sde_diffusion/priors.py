"""How far data at the end of time are from the prior, from which sampling starts."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from sde_diffusion._check import wrong_type, wrong_value
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.sde import SDE, LinearSDE

_TIMES: Final = 129
MOST_NATS: Final = 1e-3  # a dimension: an exact flow's mean is then 4.5 % of the std off


def prior_mismatch(sde: LinearSDE, mean: Tensor, std: Tensor) -> Tensor:
    """Return the KL divergence of data at the end of time from the prior, in nats a dimension.

    With x_T = alpha x0 + sigma eps at T = ``sde.horizon``, the prior N(0, σ_p²) and Gaussian data
    of mean m and standard deviation s, every dimension for itself,

        KL = ½ (r − 1 − log r + (alpha m/σ_p)²),  r = (alpha² s² + sigma²)/σ_p².

    An invertible flow keeps it: it is also the divergence of the data from the samples of an exact
    score. The mean of samples is then √(2 KL) standard deviations off, where r = 1.

    | data | VP | VP, cosine | VE | EDM | rectified flow |
    |---|---|---|---|---|---|
    | digits, the worst pixel | 1.9e-5 | 1.2e-8 | 1.8e-4 | 6.9e-5 | 4.4e-7 |
    | a pixel that is always −1 | 2.2e-5 | 1.4e-8 | 2.0e-4 | 7.8e-5 | 5.0e-7 |
    | N(0, 1) | 0 | 0 | 4.0e-8 | 6.1e-9 | 2.5e-13 |
    | uniform in [0, 255] | 0.36 | 2.2e-4 | 3.8 | 1.4 | 8.2e-3 |
    | N(5000, 1000²) | 560 | 0.34 | 5200 | 2000 | 13 |

    `train`, `evaluate` and the commands refuse data above .001 in any dimension: five times what
    images in [−1, 1] reach, and an error that some 500 samples show.

    Arguments:
        sde: the SDE.
        mean: of every dimension of the data, in the units that the model sees.
        std: likewise, the standard deviation.

    Shapes: mean, std and result alike.
    Errors: TypeError for an SDE that is not linear; ValueError for other shapes or numbers.

    >>> x = torch.tensor([[190.0, 0.5], [200.0, -0.5], [210.0, 0.0]])
    >>> from sde_diffusion import VPSDE
    >>> [round(nats, 4) for nats in prior_mismatch(VPSDE(), x.mean(0), x.std(0)).tolist()]
    [0.8637, 0.0]
    """
    if not isinstance(sde, LinearSDE):
        raise wrong_type(
            "prior_mismatch", "sde", "be a LinearSDE", type(sde).__name__, "pass VPSDE()"
        )
    if mean.shape != std.shape:
        raise wrong_value(
            "prior_mismatch",
            "std",
            f"have the shape {tuple(mean.shape)} of the mean",
            tuple(std.shape),
            "pass x.mean(0) and x.std(0)",
        )
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all() and (std >= 0).all()):
        rule = "be finite, and std at least 0"
        got = f"{mean.flatten()[:2].tolist()}, {std.flatten()[:2].tolist()}, …"
        raise wrong_value(
            "prior_mismatch", "mean, std", rule, got, "pass std=torch.zeros_like(mean) for one row"
        )
    t = torch.tensor(sde.horizon, dtype=torch.float64)
    shift, sigma = sde.marginal(mean.double(), t)
    spread, _ = sde.marginal(std.double(), t)
    prior = sde.prior().std
    r = (spread**2 + sigma**2) / prior**2
    # r − 1 − log r, which near 1 would cancel
    return 0.5 * ((r - 1) - torch.log1p(r - 1) + (shift / prior) ** 2)


def check_noise(what: str, sde: SDE) -> None:
    """Refuse a linear SDE whose alpha/sigma does not fall from the data to the prior.

    Where sigma falls, g² is negative and no flow leads from the data to noise.

    Errors: ValueError that names a time at which it rises.
    """
    if not isinstance(sde, LinearSDE):
        return
    t = torch.linspace(sde.cutoff, sde.horizon, _TIMES, dtype=torch.float64)
    lambda_ = sde.lambda_(t)
    rises = ~(lambda_[1:] < lambda_[:-1])  # NaN too
    if bool(rises.any()):
        at = float(t[int(rises.nonzero()[0])])
        raise wrong_value(
            what,
            "sde",
            "have alpha/sigma that falls with t, from the data at 0 to noise at 1",
            f"{type(sde).__name__}, where it does not at t = {at:.4g}",
            "let sigma rise or alpha fall; time that runs from noise to data is 1 - t",
        )


def meets_prior(sde: SDE, dataset: Dataset) -> bool:
    """Return whether the prior covers the scaled data, or is not known in closed form."""
    return _worst(sde, dataset, MOST_NATS) is None


def check_prior(what: str, argument: str, sde: SDE, dataset: Dataset, remedy: str) -> None:
    """Refuse data that the prior of a linear SDE does not cover: samples would come out wrong.

    Arguments:
        what: the function that refuses, as errors name it.
        argument: the argument that holds the data, as errors name it.
        sde: the model's; one that is not linear has no closed form to compare.
        dataset: the data, scaled as for the model.
        remedy: what to do about it.

    Errors: those of `check_noise`; ValueError, with the mismatch of the worst dimension and its
    moments.
    """
    check_noise(what, sde)
    worst = _worst(sde, dataset, MOST_NATS)
    if worst is not None:
        raise wrong_value(what, argument, _rule(sde, MOST_NATS), worst, remedy)


def check_units(what: str, argument: str, sde: SDE, dataset: Dataset) -> None:
    """Refuse data that are far from the units in which a trained model sees any.

    A model whose last time is not all noise has a mismatch of its own, which its likelihoods hold:
    that of data that are 3 everywhere is allowed for.

    Arguments:
        what: the function that refuses, as errors name it.
        argument: the argument that holds the data, as errors name it.
        sde: the model's.
        dataset: the data, scaled as for the model.

    Errors: those of `check_prior`.
    """
    if not isinstance(sde, LinearSDE):
        return
    most = most_nats(sde)
    worst = _worst(sde, dataset, most)
    if worst is not None:
        remedy = "bring them to the units of the model's data"
        raise wrong_value(what, argument, _rule(sde, most), worst, remedy)


def check_moments(what: str, sde: LinearSDE, mean: Tensor, std: Tensor) -> None:
    """Refuse an exact score of data that are far from the prior, from which samples start.

    Arguments:
        what: the function that refuses, as errors name it.
        sde: the model's.
        mean: of every dimension of the data.
        std: likewise, the standard deviation.

    Errors: ValueError, as `check_units`.
    """
    most = most_nats(sde)
    worst = _worst_of(sde, mean.flatten().cpu(), std.flatten().cpu(), most)
    if worst is not None:
        remedy = "bring its data to the units of the prior"
        raise wrong_value(what, "model", _rule(sde, most), worst, remedy)


def too_large(sde: LinearSDE, x: Tensor) -> str | None:
    """Return the least mismatch and the size of samples that are larger than their prior allows.

    Whatever means and spreads make up a mean square q, the mean of the dimensions' mismatch is at
    least that of N(0, q): `prior_mismatch` is convex in q, and least where there is no mean. An
    exact flow from the prior only shrinks Gaussian data, so that the data are further off than
    the samples. Few samples may exceed it by chance, and those of few steps by their error.

    Shapes: x (B, *event), floating point, at the end of a flow from the prior.
    """
    if not x.numel():
        return None
    q = x.double().square().mean().cpu()
    nats = float(prior_mismatch(sde, torch.zeros_like(q), q.sqrt()))
    found = f"{nats:.2g} at least (root mean square {float(q.sqrt()):.4g})"
    return None if nats <= most_nats(sde) else found


def beyond_prior(sde: LinearSDE, x0: Tensor) -> str | None:
    """Return the mismatch of the worst dimension where `check_units` would refuse the data.

    Shapes: x0 (B, *event), of two samples or more.
    """
    x0 = x0.detach().flatten(1).cpu().double()
    return _worst_of(sde, x0.mean(0), x0.std(0), most_nats(sde))


def most_nats(sde: LinearSDE) -> float:
    """Return the mismatch that is allowed where an SDE leaves one of data that are 3."""
    three = torch.tensor(3.0, dtype=torch.float64)
    return MOST_NATS + float(prior_mismatch(sde, three, torch.zeros_like(three)))


def _rule(sde: SDE, most: float) -> str:
    return f"meet the prior of {type(sde).__name__} within {most:.2g} nats a dimension"


def _worst(sde: SDE, dataset: Dataset, most: float) -> str | None:
    """Return the worst dimension's mismatch and moments, None where all are at most ``most``."""
    if not isinstance(sde, LinearSDE) or not len(dataset):
        return None
    mean, std = (moment.flatten().cpu() for moment in dataset.moments())
    return _worst_of(sde, mean, std, most)


def _worst_of(sde: LinearSDE, mean: Tensor, std: Tensor, most: float) -> str | None:
    nats = prior_mismatch(sde, mean, std)
    worst = int(nats.argmax())
    found = f"{nats[worst]:.2g} (mean {mean[worst]:.4g}, std {std[worst]:.4g})"
    return None if nats[worst] <= most else found

"""Log-likelihoods: time, evaluations, network passes and error, beside the reference design.

Run it as `python benchmarks/likelihood.py`. The reference design, written here from its
description: scipy's RK45 in t through numpy, rtol = atol = 1e-5 with one error norm over the
batch, and two network passes an evaluation, one for the drift and one with gradients for
Hutchinson's divergence. Both sides see the same network, data and probes. Both are also run on a
Gaussian, whose log-likelihood is known (there the probe is exact, since its Jacobian is diagonal).

Errors are differences from a `DormandPrince` run of a tenth of the smallest tolerance. The last
line is the answer: the time of the fastest of ours whose error is no larger than the reference's,
over the reference's. Peak memory is the resident set's, reset before each method (Linux).

Without `--model` the network is the U-Net of `mnist_config()` with random weights, preconditioned
around the score of N(0, ¼): a smooth flow with the cost of a real one.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from _common import Spread, options, parsed, ratio, table, write
from torch import Tensor, nn

from sde_diffusion import (
    VPSDE,
    Gaussian,
    Hutchinson,
    LinearSDE,
    ProbabilityFlow,
    ScoreModel,
    UNet,
    load,
    load_data,
    log_prob,
)
from sde_diffusion.likelihood.flow import Density
from sde_diffusion.nets.unet import mnist_config
from sde_diffusion.scores import Score
from sde_diffusion.solver import Solver
from sde_diffusion.solvers import AdaptiveAdams, DormandPrince

FIRST: Final = 1e-5  # the time of the data, on both sides
REFERENCE: Final = "reference design (scipy RK45)"
PROBES: Final = Hutchinson(probes=1, seed=0)


class Passes(nn.Module):
    """A score that counts what passes through it: calls, calls with gradients, samples.

    A module, so that `log_prob` finds the network's parameters and freezes them.
    """

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score
        self.calls = 0
        self.vjp = 0
        self.samples = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score; a call whose x asks for a gradient gets one backward pass."""
        self.calls = self.calls + 1
        self.samples = self.samples + len(x)
        self.vjp += int(x.requires_grad)
        return self.score(x, t)


@dataclass
class Result:
    """One method's log-likelihoods, and what each of its runs cost."""

    nats: Tensor
    nfe: int
    passes: Passes
    seconds: list[float] = field(default_factory=list)
    peak: float = math.nan  # MiB


Method = Callable[[Tensor], Result]


def ours(score: Score, sde: LinearSDE, solver: Solver[Any], prior: Density) -> Method:
    """Return `log_prob` with this solver."""

    def run(x: Tensor) -> Result:
        passes = Passes(score).eval()
        grid = torch.tensor([FIRST, sde.horizon], dtype=torch.float64)
        flow = ProbabilityFlow(sde, passes)
        found = log_prob(x, flow, solver, grid=grid, divergence=PROBES, prior=prior)
        return Result(found.nats, found.nfe, passes)

    return run


def reference(score: Score, sde: LinearSDE, tolerance: float, prior: Density) -> Method:
    """Return the reference design."""
    from scipy.integrate import solve_ivp

    def run(x: Tensor) -> Result:
        passes = Passes(score)
        z = PROBES.draw(x)[:, 0]

        def velocity(x_t: Tensor, t: float) -> Tensor:
            return ProbabilityFlow(sde, passes).velocity(x_t, torch.tensor(t, dtype=torch.float64))

        def derivative(t: float, state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            x_t = torch.from_numpy(state[: x.numel()]).reshape(x.shape).to(x.dtype)
            with torch.no_grad():
                drift = velocity(x_t, t)
            with torch.enable_grad():
                leaf = x_t.requires_grad_()
                product = torch.autograd.grad((velocity(leaf, t) * z).sum(), leaf)[0]
            divergence = (product * z).flatten(1).sum(1)
            return torch.cat([drift.flatten(), divergence]).double().numpy()

        start = np.concatenate([x.flatten().double().numpy(), np.zeros(len(x))])
        found = solve_ivp(
            derivative, (FIRST, sde.horizon), start, method="RK45", rtol=tolerance, atol=tolerance
        )
        if not found.success:
            raise FloatingPointError(found.message)
        end = torch.from_numpy(found.y[:, -1])
        latent = end[: x.numel()].reshape(x.shape).to(x.dtype)
        nats = prior.log_prob(latent).double() + end[x.numel() :]
        return Result(nats, found.nfev, passes)

    return run


def run_all(methods: Mapping[str, Method], x: Tensor, repeats: int) -> dict[str, Result]:
    """Return the results; every turn runs each method once: A B C A B C …."""
    results: dict[str, Result] = {}
    for _ in range(repeats):
        for name, method in methods.items():
            reset_peak()
            start = time.perf_counter()
            result = method(x)
            taken = time.perf_counter() - start
            result.peak = peak()
            results.setdefault(name, result).seconds.append(taken)
    return results


def reset_peak() -> None:
    """Forget the largest resident set so far, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the largest resident set since the reset in MiB, NaN where the system tells none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return math.nan


def methods_for(
    score: Score, sde: LinearSDE, chosen: argparse.Namespace, prior: Density
) -> dict[str, Method]:
    """Return the reference and ours at each tolerance."""
    found = {REFERENCE: reference(score, sde, chosen.reference_tolerance, prior)}
    for tol in chosen.tolerances:
        found[f"DormandPrince {tol:g}"] = ours(score, sde, DormandPrince(tol, tol), prior)
        adams = AdaptiveAdams(rtol=tol, atol=tol)
        found[f"AdaptiveAdams {tol:g}"] = ours(score, sde, adams, prior)
    return found


def oracle_part(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every method on a Gaussian, print the errors in nats, and return them."""
    sde = VPSDE()
    d = 16
    variances = torch.logspace(-1, 0.5, d, dtype=torch.float64)
    model = Gaussian(torch.linspace(-1, 1, d), variances.diag()).diffused(sde)
    x = model.oracle.sample(chosen.batch, torch.Generator().manual_seed(0))
    # The exact marginals at both ends, so that only the integration's error is left.
    first, last = torch.tensor([FIRST, sde.horizon], dtype=torch.float64)
    exact = model.log_prob(x, first)
    prior = model.marginal(last)
    rows = []
    for name, result in run_all(methods_for(model, sde, chosen, prior), x, 1).items():
        error = (result.nats - exact).abs()
        rows.append(
            {
                "method": name,
                "nfe": result.nfe,
                "forward": result.passes.calls,
                "vjp": result.passes.vjp,
                "mean": float(error.mean()),
                "largest": float(error.max()),
            }
        )
    table(
        f"Gaussian oracle, {d} dimensions, batch {chosen.batch}: error in nats",
        ["method", "NFE", "forward", "vjp", "mean", "largest"],
        [
            [
                r["method"],
                r["nfe"],
                r["forward"],
                r["vjp"],
                f"{r['mean']:.1e}",
                f"{r['largest']:.1e}",
            ]
            for r in rows
        ],
    )
    return rows


def random_model() -> ScoreModel:
    """Return the U-Net with random weights where it starts from zeros."""
    # Frequencies of 10 radians: random weights would vary with t a thousand times a unit else.
    network = UNet(**(mnist_config() | {"time_scale": 10.0}))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            bound = (3 / math.prod(parameter.shape[1:])) ** 0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return ScoreModel(network, VPSDE(), prediction="edm").eval()


def batch_of(chosen: argparse.Namespace, model: ScoreModel) -> Tensor:
    """Return rows of the data asked for, else normals of deviation ½ in the model's shape."""
    generator = torch.Generator().manual_seed(1)
    if chosen.data is not None:
        data = load_data(chosen.data, "test", limit=chosen.batch)
        return data.batch(torch.arange(chosen.batch), generator)
    shape = (1, chosen.size, chosen.size) if model.data is None else model.data.shape
    return 0.5 * torch.randn(chosen.batch, *shape, generator=generator)


def unet_part(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run every method on the network, print the table, and return its numbers."""
    model = random_model() if chosen.model is None else load(chosen.model)
    x = batch_of(chosen, model)
    prior = model.sde.prior()
    results = run_all(methods_for(model, model.sde, chosen, prior), x, chosen.repeats)
    truth = min(chosen.tolerances) / 10 if chosen.truth is None else chosen.truth
    target = ours(model, model.sde, DormandPrince(truth, truth), prior)(x)
    against = f"DormandPrince {truth:g}"
    rows = [_row(name, r, results[REFERENCE], target, x[0].numel()) for name, r in results.items()]
    table(
        f"{chosen.model or 'U-Net with random weights'}, batch {tuple(x.shape)}; differences "
        f"are from {against}",
        [
            "method",
            "seconds",
            "× reference",
            "NFE",
            "forward",
            "vjp",
            "samples through it",
            "bits/dim",
            "mean difference",
            "mean |difference|",
            "peak MiB",
        ],
        [
            [
                r["method"],
                f"{r['seconds']['median']:.2f}",
                Spread(**r["ratio"]).show(),
                r["nfe"],
                r["forward"],
                r["vjp"],
                r["samples"],
                f"{r['bits_per_dim']:.5f}",
                f"{r['difference']:+.1e}",
                f"{r['absolute_difference']:.1e}",
                f"{r['peak']:.0f}",
            ]
            for r in rows
        ],
    )
    best = _at_equal_error(rows)
    return {"shape": list(x.shape), "against": against, "rows": rows, "at_equal_error": best}


def _at_equal_error(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fastest of ours whose error is no larger than the reference's, and print it."""
    base, *others = rows
    good = [r for r in others if r["absolute_difference"] <= base["absolute_difference"]]
    if not good:
        print("\nnone of ours is as near as the reference; pass smaller --tolerances")
        return None
    best = min(good, key=lambda r: r["seconds"]["median"])
    print(
        f"\nat the reference's error or less: {best['method']} in "
        f"{Spread(**best['ratio']).show()} of its time"
    )
    return {"method": best["method"], "ratio": best["ratio"]}


def _row(name: str, r: Result, base: Result, target: Result, d: int) -> dict[str, Any]:
    bits = -r.nats.double() / (d * math.log(2))
    difference = bits + target.nats.double() / (d * math.log(2))
    return {
        "method": name,
        "nfe": r.nfe,
        "forward": r.passes.calls,
        "vjp": r.passes.vjp,
        "samples": r.passes.samples,
        "seconds": asdict(Spread.of(r.seconds)),
        "ratio": asdict(ratio(r.seconds, base.seconds)),
        "bits_per_dim": float(bits.mean()),
        "difference": float(difference.mean()),
        "absolute_difference": float(difference.abs().mean()),
        "peak": r.peak,
    }


def main() -> None:
    """Measure, print the tables and write the JSON."""
    parser = options(__doc__)
    parser.add_argument("--model", help="a checkpoint to use instead")
    parser.add_argument("--data", help="test data to use instead of normals")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=28, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=1, help="turns")
    parser.add_argument(
        "--tolerances", type=float, nargs="+", default=[1e-4, 3e-5, 1e-5], help="of ours"
    )
    parser.add_argument("--reference-tolerance", type=float, default=1e-5)
    parser.add_argument("--truth", type=float, help="tolerance of a run to measure errors from")
    chosen = parsed(parser)
    if chosen.quick:
        chosen.batch = 4
        chosen.size = 8
        chosen.tolerances = [1e-3]
        chosen.reference_tolerance = 1e-3
    oracle = oracle_part(chosen)
    write(
        chosen.out,
        oracle=oracle,
        network=unet_part(chosen),
        tolerances=chosen.tolerances,
        reference_tolerance=chosen.reference_tolerance,
        truth=chosen.truth,
    )


if __name__ == "__main__":
    main()

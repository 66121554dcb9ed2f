"""Evaluations tuned to an error, on data whose log-likelihood is known."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import VPSDE, Dataset, DataSpec, GaussianMixture, LinearBeta, angular
from sde_diffusion.evaluation.evaluator import Evaluator
from sde_diffusion.evaluation.settings import EvaluationSettings
from sde_diffusion.evaluation.tuning import audited, sizes_of, summary, tuned
from sde_diffusion.solvers import DormandPrince, Heun

D = 3


def evaluator(
    *, solver=None, grid=None, beta: float = 20.0, **settings
) -> tuple[Evaluator, float]:
    """Return an evaluator of 64 draws of a mixture, and their exact mean log-density."""
    means = torch.tensor([[0.5, -0.4, 0.1], [-0.5, 0.3, 0.2]], dtype=torch.float64)
    data = GaussianMixture([1, 2], means, stds=[0.2, 0.3])
    x = data.sample(64, torch.Generator().manual_seed(0)).float()
    dataset = Dataset(DataSpec("mixture", (D,), None), x, None)
    model = data.diffused(VPSDE(LinearBeta(0.1, beta)))
    chosen = EvaluationSettings(**{"mode": "reverse"} | settings)
    solver = DormandPrince() if solver is None else solver
    return Evaluator(model, dataset, solver, chosen, grid), float(data.log_prob(x.double()).mean())


def bits(nats: float) -> float:
    return -nats / (D * math.log(2))


@pytest.mark.parametrize("error", [0.3, 0.03])
def test_the_error_asked_for_is_met_by_the_number_that_comes_out(error: float) -> None:
    begun, truth = evaluator()
    found = tuned(begun, error, rows=16)
    last = found.ledgers[-1]
    assert math.fsum(sizes_of(last, 64).values()) <= error
    made = found.evaluator.batch(range(64))
    value = math.fsum(made.values["flow_nats"]) / 64
    assert abs(bits(value) - bits(truth)) <= error


def test_a_smaller_error_takes_more_work_where_its_line_is() -> None:
    begun, _ = evaluator()
    loose = tuned(begun, 0.3, rows=16)
    tight = tuned(begun, 0.03, rows=16)
    assert loose.evaluator.settings.probes < tight.evaluator.settings.probes
    assert loose.evaluator.settings.tolerance == 1e-3  # where the tuner begins
    probes = [sizes_of(ledger, 64)["probes"] for ledger in tight.ledgers]
    assert probes[-1] < probes[0]


def test_fixed_steps_are_halved_until_the_error_is_met() -> None:
    grid = angular(VPSDE(), 6).flip(0)
    begun, truth = evaluator(solver=Heun(), grid=grid, divergence="exact")
    found = tuned(begun, 0.02, rows=16)
    steps = len(found.evaluator.grid) - 1
    assert steps in (12, 24, 48, 96)
    value = math.fsum(found.evaluator.batch(range(64)).values["flow_nats"]) / 64
    assert abs(bits(value) - bits(truth)) <= 0.02


def test_what_no_work_can_lower_is_refused_by_name() -> None:
    """With β up to 2 the prior is far from the distribution of x_1."""
    begun, _ = evaluator(beta=2.0, divergence="exact")
    with pytest.raises(ValueError, match=r"error must be above .*, which prior leaves here"):
        tuned(begun, 1e-3, rows=16)


def test_the_summary_adds_up_and_its_interval_holds_the_truth() -> None:
    made, truth = evaluator(tolerance=1e-3, probes=8)
    ledger = audited(made, 64)
    found = summary(ledger, 64)
    shifts = sum(line["shift"] for line in found["lines"] if line["name"] != "offset")
    assert found["shift"] == pytest.approx(shifts, abs=1e-12)
    assert abs(bits(ledger.value) + found["shift"] - bits(truth)) <= found["error"]
    assert [line["name"] for line in found["lines"]] == [
        "prior",
        "truncation",
        "tolerance",
        "rounding",
        "probes",
        "offset",
    ]


def test_draws_of_the_noise_show_the_slack_of_the_bound() -> None:
    """Two levels of one pixel: log P(k) is known, and so is what one draw loses on average."""
    data = GaussianMixture([1, 1], torch.tensor([[-0.5], [0.5]]), stds=[0.15, 0.15])
    spec = DataSpec("pixels", (1,), 2)
    dataset = Dataset(spec, torch.tensor([[0], [1]] * 64), None)
    settings = EvaluationSettings(mode="reverse", divergence="exact", draws=1)
    made = Evaluator(data.diffused(VPSDE()), dataset, DormandPrince(), settings)
    ledger = audited(made, 128)
    slack = ledger.line("dequantization")
    # ∫_0^1 log p(u) du and log ∫_0^1 p(u) du over one bin, by quadrature.
    x = torch.linspace(-1, 0, 20001, dtype=torch.float64)[:-1, None] + 1 / 40000
    log_p = data.log_prob(x)
    exact = float((log_p.exp().mean()).log() - log_p.mean())
    assert float(slack.shift.mean()) > 0.3 * exact
    assert float((slack.shift + 2 * slack.error).mean()) > exact


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tuned(evaluator()[0], 0.0), "error must be finite and above 0"),
        (lambda: audited(evaluator()[0], 0), "rows must be at least 1, got 0"),
        (
            lambda: audited(evaluator(bounds=("elbo",))[0]),
            "settings must have the flow among the bounds, got elbo",
        ),
    ],
)
def test_mistakes_are_named(make, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()

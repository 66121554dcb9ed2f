"""How many calls of this package lie between a call of its public face and the network."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from torch import Tensor, nn

import sde_diffusion
from sde_diffusion import (
    VPSDE,
    Dataset,
    DataSpec,
    ProbabilityFlow,
    ScoreModel,
    TrainingConfig,
    log_prob,
    sample,
    train,
)
from sde_diffusion.solvers import (
    DDIM,
    AdaptiveAdams,
    AngularAdams,
    DormandPrince,
    DPMSolverPP,
    EulerMaruyama,
)

# The folders that install as sde_diffusion, as sde_diffusion.solvers and as sde_diffusion.cli.
PACKAGE = [Path(str(folder)).resolve() for folder in sde_diffusion.__path__]
FOLDERS = [
    *PACKAGE,
    *(folder.with_name(name) for folder in PACKAGE for name in ("solvers", "cli")),
]


class Hops(nn.Module):
    """A network that keeps the functions of the package through which every call of it came.

    They are listed from the call in the test to the network, generators included, and calls of
    the same functions once; those of torch do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = list[list[str]]()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        frames = [frame for frame in inspect.stack(context=0) if within(frame.filename)]
        names = [f"{Path(frame.filename).name}:{frame.function}" for frame in reversed(frames)]
        if names not in self.seen:
            self.seen.append(names)
        return self.weight * x

    def most(self) -> int:
        """The largest number of functions between a call in the test and the network."""
        assert self.seen, "the network was not called"
        return max(map(len, self.seen))


def within(filename: str) -> bool:
    path = Path(filename).resolve()
    return any(path.is_relative_to(folder) for folder in FOLDERS)


def points() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(DataSpec("points", (2,), None), torch.randn(8, 2, generator=generator), None)


def test_a_training_step_reaches_the_network_in_at_most_seven_calls() -> None:
    """With the network's own `forward` there are eight."""
    for accumulate in (1, 2):
        for precision in ("float32", "bfloat16"):
            network = Hops()
            config = TrainingConfig(
                steps=2, batch_size=4, accumulate=accumulate, precision=precision
            )
            assert len(list(train(ScoreModel(network, VPSDE()), points(), config))) == 2
            assert network.most() <= 7, network.seen
            # All of them are counted, from the generator that the caller iterates.
            assert network.seen[0][:2] == ["loop.py:_steps", "trainer.py:advance"]


def test_sample_reaches_the_network_in_at_most_six_calls() -> None:
    for solver in (AngularAdams(), DDIM(), DPMSolverPP(order=2), EulerMaruyama()):
        network = Hops()
        sample(ScoreModel(network, VPSDE()).eval(), solver, (4, 2), steps=6)
        # A solver of any SDE asks for the drift, which asks for the score.
        most = 8 if isinstance(solver, EulerMaruyama) else 6
        assert network.most() <= most, network.seen
        assert network.seen[0][:2] == ["generate.py:sample", "integration.py:integrate"]


def test_log_prob_reaches_the_network_in_at_most_ten_calls() -> None:
    for solver in (DormandPrince(1e-3, 1e-3), AdaptiveAdams(1e-3, 1e-3)):
        network = Hops()
        model = ScoreModel(network, VPSDE()).eval()
        log_prob(points().values, ProbabilityFlow(model.sde, model), solver)
        assert network.most() <= 10, network.seen
        assert network.seen[0][0] == "flow.py:log_prob"

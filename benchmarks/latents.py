"""A latent model of MNIST beside the shipped model of pixels: FLOPs and Fréchet distances.

Run it as `python benchmarks/latents.py --data path/to/mnist`; by default it trains for ten minutes
and then draws from both models. The autoencoder takes 1×28×28 to 4×7×7, in a quarter of the time,
and the score of its latents is trained in the rest. Both models are sampled by one solver on as
many evaluations, and their samples are compared with the test part of the data.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, cast

import torch
from _common import options, parsed, table, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sde_diffusion import (
    VPSDE,
    AutoencoderBound,
    ConvolutionalAutoencoder,
    Dataset,
    GaussianAutoencoder,
    LatentModel,
    ScoreModel,
    TrainingConfig,
    UNet,
    load,
    load_autoencoder,
    load_data,
    load_latent,
    sample,
    train,
)
from sde_diffusion.diagnostics.metrics import Reference
from sde_diffusion.solvers import AngularAdams

_KL: Final = 3e-2  # weight of the divergence
_SHARE: Final = 0.25  # of the time, for the autoencoder
_AT_ONCE: Final = 64  # samples


def fitted(run: Iterator[Any], seconds: float) -> int:
    """Take steps until the time is over, and return how many."""
    began = time.perf_counter()
    step = 0
    with closing(cast("Any", run)):
        for progress in run:
            step = progress.step
            if time.perf_counter() - began > seconds:
                break
    return step


def trained(dataset: Dataset, seconds: float, folder: Path, width: int) -> tuple[Any, int, int]:
    """Return a latent model, and the steps of its autoencoder and of its score."""
    shape = tuple(dataset.spec.shape)
    config = TrainingConfig(steps=10**6, batch_size=64, warmup=50, ema_decay=0.998, log_every=500)
    network = ConvolutionalAutoencoder(shape, latent=4, width=16, multipliers=(1, 2, 4))
    autoencoder = GaussianAutoencoder(network)
    run = train(autoencoder, dataset, config, out=folder / "ae", objective=AutoencoderBound(_KL))
    first = fitted(run, _SHARE * seconds)
    around = load_autoencoder(folder / "ae")
    net = UNet(around.latent[0], width, (1, 2), 2, (0, 1), time_scale=10.0)
    score = ScoreModel(net, VPSDE(), "edm", sigma_data=1.0)
    run = train(LatentModel(around, score), dataset, config, out=folder / "latent")
    second = fitted(run, (1 - _SHARE) * seconds)
    return load_latent(folder / "latent"), first, second


@torch.no_grad()
def flops(model: Any, event: tuple[int, ...]) -> int:  # noqa: ANN401  (a score)
    """Return the floating-point operations of an evaluation of one sample."""
    counter = FlopCounterMode(display=False)
    with counter:
        model.eps(torch.zeros(1, *event), torch.tensor(0.5, dtype=torch.float64))
    return counter.get_total_flops()


def drawn(model: Any, event: tuple[int, ...], number: int, steps: int) -> Tensor:  # noqa: ANN401
    """Return samples of a model, as states."""
    parts = range(0, number, _AT_ONCE)
    return torch.cat(
        [
            sample(
                model,
                AngularAdams(),
                (min(_AT_ONCE, number - first), *event),
                steps=steps,
                seed=0,
                first=first,
            ).x
            for first in parts
        ]
    )


def main() -> None:
    """Print the table."""
    parser = options(__doc__)
    parser.add_argument("--data", help="a folder of MNIST; digits and no pixel model if not given")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--nfe", type=int, default=20, help="evaluations of a sample")
    parser.add_argument("--width", type=int, default=56, help="of the score's U-Net")
    chosen = parsed(parser)
    quick = chosen.quick or chosen.data is None
    source = chosen.data or "digits"
    number, steps = (8, 2) if chosen.quick else (chosen.samples, chosen.nfe)
    dataset = load_data(source, "train")
    seconds = 0.1 if chosen.quick else 60 * chosen.minutes
    with tempfile.TemporaryDirectory() as folder:
        width = 8 if chosen.quick else chosen.width
        latent, first, second = trained(dataset, seconds, Path(folder), width)
    pixel = load("digits" if quick else "mnist")
    test = load_data(source, "test")
    x = test.centred()
    data = Reference(x)
    with torch.no_grad():
        samples = latent.decode(drawn(latent, latent.data.shape, number, steps))
        again = latent.decode(latent.encode(x[:number]))
    others = drawn(pixel, tuple(test.spec.shape), number, steps)
    found = {
        "latent": (flops(latent, latent.data.shape), data.frechet(samples)),
        "pixels": (flops(pixel, tuple(test.spec.shape)), data.frechet(others)),
        "reconstructions": (0, data.frechet(again)),
        "training data": (0, data.frechet(dataset.centred()[:number])),
    }
    rows = [
        (name, f"{count / 1e6:.1f}" if count else "–", f"{distance:.3f}")
        for name, (count, distance) in found.items()
    ]
    title = f"{number} samples at {steps} evaluations; {first} steps of the autoencoder, {second}"
    header = ["model", "MFLOP an evaluation", "Fréchet distance"]
    table(f"{title} of the score", header, rows)
    ratios = [found["latent"][i] / found["pixels"][i] for i in (0, 1)]
    print(f"\nlatent/pixels: FLOPs {ratios[0]:.3f}, Fréchet distance {ratios[1]:.3f}")
    results = {name: {"flops": a, "frechet": b} for name, (a, b) in found.items()}
    write(chosen.out, results=results, steps=[first, second], samples=number, nfe=steps)


if __name__ == "__main__":
    main()

"""Dequantization that is learned: a conditional Gaussian or flow, fitted to a score model.

The best noise is q(u|k) = p(k + u)/P(k): its bound is log P(k) itself. Only the slope of log p in
the bin matters for it, and ∇ log p is what a score model returns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn

from sde_diffusion._check import (
    Reason,
    an_object,
    diverged,
    positive_integer,
    positive_number,
    wrong_value,
)
from sde_diffusion._files import write_atomically
from sde_diffusion._seeds import Purpose, check_seed, mix
from sde_diffusion._tensors import flat_sum
from sde_diffusion._version import __version__
from sde_diffusion.checkpoints.configuration import UNBUILT, check_data, check_integer
from sde_diffusion.checkpoints.reading import FORMAT, check_weights, content, fill, read
from sde_diffusion.data.checks import check_fits
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.shuffling import batch_rows
from sde_diffusion.data.spec import DataSpec
from sde_diffusion.integration import check_evaluation
from sde_diffusion.likelihood.dequantization import Dequantizer, in_bin
from sde_diffusion.nets._layers import conv, linear, shapes_alone
from sde_diffusion.scores import ScoreLike, first_time

_STEEPEST: Final = 3.0  # log-scales stay below, so that no step of training can overflow
_MOST_ELEMENTS: Final = 2**22  # of all layers, for what a file may ask


@final
class _AffineLayer(nn.Module):
    """y ← y e^{s} + m with s and m functions of k and of the ``kept`` part of y, which stays."""

    kept: Tensor

    def __init__(
        self, shape: tuple[int, ...], kept: Tensor, width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("kept", kept, persistent=False)
        channels, layer = (shape[0], conv) if len(shape) == 3 else (math.prod(shape), linear)
        self.image = len(shape) == 3
        self.network = nn.Sequential(
            layer(2 * channels, width, generator),
            nn.SiLU(),
            layer(width, width, generator),
            nn.SiLU(),
            layer(width, 2 * channels, None),
        )

    def forward(self, y: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new y and log|dy/dy_old|, (B, *event) and (B,)."""
        inputs = torch.stack([k, (self.kept * y).to(k.dtype)], 1)
        inputs = inputs.flatten(1, 2) if self.image else inputs.flatten(1)
        shift, bend = self.network(inputs).to(y.dtype).chunk(2, 1)
        log_scale = _STEEPEST * (bend.reshape(y.shape) / _STEEPEST).tanh() * (1 - self.kept)
        moved = y * log_scale.exp() + shift.reshape(y.shape) * (1 - self.kept)
        return moved, flat_sum(log_scale)


@final
class Variational(Dequantizer):
    """Noise u = Φ(y) with y a learned map of a standard normal z, given the pixels around.

    Without ``couplings`` y = m(k) + e^{s(k)} z is Gaussian. Each coupling then moves every other
    dimension by a function of the rest. log q = ∑ ½(y² − z²) − log|dy/dz|. At first y = z, the
    uniform noise, which a logistic of a Gaussian would not contain.

    The networks see images through 7×7 windows, other samples whole. They are in ``layers``.

    Arguments:
        spec: what the data are: their shape, levels and scaling.
        couplings: the coupling layers after the Gaussian.
        width: channels of the networks.
        seed: the seed of the weights and of the noise.

    Errors: TypeError or ValueError for real data and for arguments out of range.
    Source: Ho et al. 2019 (Flow++), section 3.1; Hoogeboom et al. 2020.

    >>> noise = Variational(DataSpec("digits", (1, 8, 8), 17), couplings=2, width=8)
    >>> [(u, log_q)] = noise.draws(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    >>> u.shape, log_q.item()
    (torch.Size([1, 1, 8, 8]), 0.0)
    """

    def __init__(
        self, spec: DataSpec, *, couplings: int = 0, width: int = 32, seed: int = 0
    ) -> None:
        if spec.levels is None:
            raise wrong_value(
                "Variational",
                "spec",
                "have levels",
                "real numbers",
                "evaluate their density as it is",
            )
        positive_integer("Variational", "couplings", couplings, least=0)
        positive_integer("Variational", "width", width)
        check_seed("Variational", seed)
        self.spec = spec
        self.levels = spec.levels
        self.seed = seed
        self.config = {"couplings": couplings, "width": width, "seed": seed}
        generator = torch.Generator().manual_seed(mix(seed, Purpose.DEQUANTIZER_WEIGHTS))
        with torch.device("cpu"):  # where the generator is, whatever the default device
            indices = torch.meshgrid(*map(torch.arange, spec.shape), indexing="ij")
            colour = torch.stack(indices).sum(0)
            parts = [torch.zeros(spec.shape)]  # the first layer keeps nothing
            parts += [(colour + i).remainder(2).float() for i in range(couplings)]
            layers = (_AffineLayer(spec.shape, kept, width, generator) for kept in parts)
            self.layers = nn.ModuleList(layers)

    def transform(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        weight = next(self.layers.parameters())
        grey = ((2 * k.double() + 1) / self.levels - 1).to(weight)
        start = y = z.to(weight.device)
        log_q = -0.5 * flat_sum(start.square())
        for layer in self.layers:
            y, log_det = layer(y, grey)
            log_q = log_q - log_det
        log_q = log_q + 0.5 * flat_sum(y.square())
        return in_bin(torch.special.ndtr(y)).to(z.device), log_q.to(z.device)

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one ``.safetensors`` file, atomically."""
        configuration: dict[str, Any] = {
            "format": FORMAT,
            "dequantizer": self.config,
            "data": self.spec.to_json(),
            "versions": {"sde_diffusion": __version__},
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.layers.state_dict().items()}
        whole = content(configuration, tensors)
        write_atomically(path, lambda file: file.write_bytes(whole))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the dequantizer that `save` wrote.

        Errors: FileNotFoundError; ValueError for files that are damaged or of something else.
        """
        configuration, tensors = read(Path(path))
        try:
            settings = configuration["dequantizer"]
            most = sum(tensor.numel() for tensor in tensors.values())
            check_integer("width", settings["width"], most)
            check_integer("couplings", settings["couplings"], len(tensors))
            check_data(configuration["data"], _MOST_ELEMENTS // (settings["couplings"] + 1))
            spec = DataSpec.from_json(configuration["data"])
            with shapes_alone():
                check_weights(cls(spec, **settings).layers, tensors, Path(path))
            made = cls(spec, **settings)
        except UNBUILT as error:
            got = Reason(f"{type(error).__name__}: {error}")
            raise wrong_value(
                "Variational.load",
                str(path),
                "hold a dequantizer",
                got,
                "pass the file that Variational.save wrote",
            ) from error
        fill(made.layers, tensors, Path(path))
        return made


def fit_dequantizer(
    dequantizer: Variational,
    dataset: Dataset,
    model: ScoreLike,
    *,
    steps: int = 500,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    blur: float = 0.1,
    seed: int = 0,
) -> None:
    """Raise the bound E[log p(k + u) − log q(u|k)] of a data set in the layers of ``dequantizer``.

    With x = x(k + u), u = u_φ(z; k), the gradient in φ at fixed z is
    ∂_φ [s(x, t)·x + log|dx/d(k + u)| − log q], s held constant, because s = ∇ log p for small t.
    So a step is one evaluation of the score and no ODE is solved. A score that is not exact makes
    the fit worse, never the bound wrong: every q gives a valid bound.

    ``blur`` is sigma/alpha at the t of the score, in widths of the thinnest bin (t is at least
    1e-5). The score of an oracle is best near 0; that of a network, −eps_θ/sigma, is mostly error
    there: on the shipped digits .01 ends .6 bits/dim above uniform noise and .1 .07 below.

    Arguments:
        dequantizer: the noise to fit, in place.
        dataset: integer data.
        model: the score model, in evaluation mode.
        steps: steps of Adam.
        batch_size: samples of a step.
        learning_rate: the first learning rate; it falls to 0 by a cosine.
        blur: sigma/alpha at the time of the score, in widths of the thinnest bin.
        seed: the seed of the batches and of their noise.

    Errors: ValueError for a model in training mode or of other data; FloatingPointError where the
    score is not finite.
    """
    an_object("fit_dequantizer", "dequantizer", dequantizer, Variational, "pass Variational(spec)")
    an_object("fit_dequantizer", "dataset", dataset, Dataset, "pass load_data(name)")
    an_object("fit_dequantizer", "model", model, ScoreLike, "pass a ScoreModel")
    check_evaluation("fit_dequantizer", model)
    check_fits(dequantizer.spec, dataset.spec)
    positive_integer("fit_dequantizer", "steps", steps)
    positive_integer("fit_dequantizer", "batch_size", batch_size)
    positive_number("fit_dequantizer", "learning_rate", learning_rate)
    positive_number("fit_dequantizer", "blur", blur)
    optimizer = torch.optim.Adam(dequantizer.layers.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    spec = dataset.spec
    levels = dequantizer.levels
    noise = torch.tensor(blur / spec.scaling.slope(levels), dtype=torch.float64)
    t = model.linear_sde().time(-noise.log()).clamp(min=first_time(model))
    for step in range(1, steps + 1):
        k = dataset.values[batch_rows(len(dataset), batch_size, seed, step)]
        generator = torch.Generator().manual_seed(mix(seed, Purpose.DEQUANTIZER_FIT, step))
        z = torch.randn(k.shape, generator=generator, dtype=torch.float64)
        u, log_q = dequantizer.transform(z, k)
        x = spec.scaling.forward(k.double() + u, levels)
        slope = flat_sum(_score(model, x.detach(), t) * x)
        loss = (log_q - spec.log_volume(x) - slope).mean()
        if not bool(torch.isfinite(loss)):
            raise diverged(
                "fit_dequantizer",
                "score",
                f"be finite at step {step}",
                loss.item(),
                "pass a larger blur",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()


@torch.no_grad()
def _score(model: ScoreLike, x: Tensor, t: Tensor) -> Tensor:
    weight = next(model.parameters(), x) if isinstance(model, nn.Module) else x
    return model(x.to(model.device, weight.dtype), t).to(x)

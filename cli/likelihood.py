"""`sde-diffusion likelihood`: bits per dimension of a data set, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from sde_diffusion.cli import _common, menu

EXAMPLES: Final = """\b
Examples:
  sde-diffusion likelihood --limit 100
  sde-diffusion likelihood --model ring --data points.npy --divergence exact
  sde-diffusion likelihood --bound all --times 64 --out bits
  sde-diffusion likelihood --bound vlb --dequantization none
  sde-diffusion likelihood --limit 100 --error 0.01
  sde-diffusion likelihood --out bits --resume
  torchrun --nproc-per-node 4 -m sde_diffusion.cli likelihood --out bits
"""


@click.command(epilog=EXAMPLES)
@_common.model_option
@_common.data_options
@_common.split_option
@click.option(
    "--bound",
    type=click.Choice(["flow", "elbo", "vlb", "all"]),
    default="flow",
    show_default=True,
    help="The likelihood of the probability-flow ODE, the evidence lower bound in continuous "
    "time, the discrete one of a DDPM, or all three.",
)
@_common.solver_option("dormand-prince", menu.ODE_SOLVER_NAMES)
@_common.grid_options
@click.option(
    "--t-min",
    type=float,
    default=None,
    help="Smallest time of flow and elbo, taken as that of the data; the model's own, or 1e-5, if "
    "not given.",
)
@click.option(
    "--variable",
    type=click.Choice(["angle", "time", "log-snr"]),
    default="angle",
    show_default=True,
    help="Variable of integration of the probability-flow ODE.",
)
@click.option(
    "--divergence",
    type=click.Choice(["hutchinson", "hutch++", "exact"]),
    default="hutchinson",
    show_default=True,
    help="Trace of the Jacobian by random probes, by probes and a sketch of the Jacobian, or "
    "exactly, by one product for every dimension.",
)
@_common.count_option(
    "--probes", default=2, help="Probes of hutchinson and hutch++, for each sample."
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "reverse", "forward"]),
    default="auto",
    show_default=True,
    help="Mode of automatic differentiation; auto measures which is faster.",
)
@click.option(
    "--dequantization",
    type=click.Choice(["uniform", "truncated-normal", "none"]),
    default="uniform",
    show_default=True,
    help="Noise in the bins of integer data; none for elbo and vlb of the levels themselves.",
)
@_common.count_option(
    "--draws", default=1, help="Draws of the dequantization noise; more give a tighter bound."
)
@_common.count_option(
    "--times",
    default=32,
    least=2,
    help="Draws of (t, noise) for the elbo, of (k, noise) for the vlb; even.",
)
@_common.count_option(
    "--vlb-steps",
    default=None,
    help="Steps of the DDPM of vlb; those of its SDE, or 1000, if not given.",
)
@click.option(
    "--chain",
    type=click.Choice(["auto", "lattice", "log-snr"]),
    default="auto",
    show_default=True,
    help="Times of that DDPM: its own lattice or equal steps of t, or equal steps of the log-SNR; "
    "auto is log-snr for levels, unless the model has discrete betas.",
)
@click.option(
    "--variance",
    type=click.Choice(["auto", "learned", "forward", "posterior"]),
    default="auto",
    show_default=True,
    help="Variance of its steps: what the model has learned or else forward, beta_k, or "
    "posterior, beta_k given x0; auto is the learned one, else posterior for levels and forward "
    "for real numbers.",
)
@click.option(
    "--decoder",
    type=click.Choice(["levels", "bins"]),
    default="levels",
    show_default=True,
    help="Its last step with --dequantization none: a normal over the levels, or over their bins.",
)
@_common.count_option(
    "--ledger",
    default=None,
    help="Audit the flow on the first N samples: a line for every source of error.",
)
@click.option(
    "--error",
    type=float,
    default=None,
    help="Choose tolerance, probes and t-min so that the ledger adds up to this, in bits/dim.",
)
@_common.count_option("--batch-size", default=64, help="Samples computed at once.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its settings.")
@_common.common_options(out="likelihood")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    device: str,
    out: Path,
    as_json: bool,
    resume: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Evaluate bits per dimension of a data set.

    Writes likelihood.csv with a line for each sample, likelihood.npz with all that is known of
    them, a picture, and manifest.json, which says how they came about. Every finished batch is
    kept, so an interrupted run goes on with --resume. A new run replaces the results in --out when
    it is done. Sample i depends on --seed and i alone, not on --batch-size nor on the number of
    processes; torchrun shares the batches among several. Samples without a finite likelihood are
    named and left out of the means, and the exit status is then 1.
    """
    from sde_diffusion.cli._likelihood_job import agreed, log_of, prepared
    from sde_diffusion.cli._likelihood_results import lines_of
    from sde_diffusion.cli._likelihood_run import computed, finished
    from sde_diffusion.cli._together import alone_in, device_of
    from sde_diffusion.parallel.ranks import Ranks, place

    rank, world = place()
    where = device_of(device, world)
    asked = {_flag(name): value for name, value in options.items()}
    given = {
        _flag(name)
        for name in options
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    with alone_in("likelihood", out), Ranks(out / ".ranks", rank, world, _common.note) as ranks:
        job = agreed(ranks, lambda: prepared(asked, given, out, where, resume=resume), where)
        computed(job, log_of(out, rank), ranks)
        if rank:
            return
        manifest = finished(job, out)
    _common.show(manifest["result"], lines_of(manifest), as_json=as_json)
    if manifest["result"].get("failures"):
        ctx.exit(1)


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_name").replace("_", "-")

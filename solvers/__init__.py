"""Solvers: one file per method or family, all on the `Solver` protocol of `sde_diffusion`."""

from __future__ import annotations

from sde_diffusion.solvers.adams_bashforth import AdamsBashforth
from sde_diffusion.solvers.adaptive_adams import AdaptiveAdams
from sde_diffusion.solvers.adaptive_dpm_solver import AdaptiveDPMSolver
from sde_diffusion.solvers.adaptive_sde import AdaptiveSDE
from sde_diffusion.solvers.ancestral import Ancestral
from sde_diffusion.solvers.angular_adams import AngularAdams
from sde_diffusion.solvers.angular_sde import AngularSDE
from sde_diffusion.solvers.annealed_langevin import AnnealedLangevin
from sde_diffusion.solvers.corrector import Corrector
from sde_diffusion.solvers.ddim import DDIM
from sde_diffusion.solvers.ddpm import DDPM
from sde_diffusion.solvers.deis import DEIS
from sde_diffusion.solvers.deis_published import DEISPublished
from sde_diffusion.solvers.dormand_prince import DormandPrince
from sde_diffusion.solvers.dpm_solver import DPMSolver, DPMSolverMultistep
from sde_diffusion.solvers.dpm_solver_pp import DPMSolverPP, DPMSolverPPSinglestep
from sde_diffusion.solvers.dpm_solver_pp_published import DPMSolverPPPublished
from sde_diffusion.solvers.edm_heun import EDMHeun
from sde_diffusion.solvers.edm_stochastic import EDMStochastic
from sde_diffusion.solvers.er_sde import ERSDE
from sde_diffusion.solvers.euler import Euler
from sde_diffusion.solvers.euler_maruyama import EulerMaruyama
from sde_diffusion.solvers.heun import Heun
from sde_diffusion.solvers.ipndm import IPNDM
from sde_diffusion.solvers.ipndm_published import IPNDMPublished
from sde_diffusion.solvers.langevin import Langevin
from sde_diffusion.solvers.midpoint import Midpoint
from sde_diffusion.solvers.milstein import Milstein
from sde_diffusion.solvers.picard import Picard
from sde_diffusion.solvers.plms import PLMS
from sde_diffusion.solvers.plms_published import PLMSPublished
from sde_diffusion.solvers.predictor_corrector import PredictorCorrector
from sde_diffusion.solvers.restart import Restart
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion
from sde_diffusion.solvers.runge_kutta import RungeKutta4
from sde_diffusion.solvers.sa_solver import SASolver
from sde_diffusion.solvers.sde_dpm_solver_pp import SDEDPMSolverPP
from sde_diffusion.solvers.sde_dpm_solver_pp_published import SDEDPMSolverPPPublished
from sde_diffusion.solvers.seeds import SEEDS
from sde_diffusion.solvers.song_langevin import SongLangevin
from sde_diffusion.solvers.sra import SRA
from sde_diffusion.solvers.torchdiffeq_adjoint import TorchDiffEqAdjoint
from sde_diffusion.solvers.torchdiffeq_methods import TorchDiffEq
from sde_diffusion.solvers.unipc import UniPC
from sde_diffusion.solvers.unipc_published import UniPCPublished

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "PLMS",
    "SEEDS",
    "SRA",
    "AdamsBashforth",
    "AdaptiveAdams",
    "AdaptiveDPMSolver",
    "AdaptiveSDE",
    "Ancestral",
    "AngularAdams",
    "AngularSDE",
    "AnnealedLangevin",
    "Corrector",
    "DEISPublished",
    "DPMSolver",
    "DPMSolverMultistep",
    "DPMSolverPP",
    "DPMSolverPPPublished",
    "DPMSolverPPSinglestep",
    "DormandPrince",
    "EDMHeun",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "IPNDMPublished",
    "Langevin",
    "Midpoint",
    "Milstein",
    "PLMSPublished",
    "Picard",
    "PredictorCorrector",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta4",
    "SASolver",
    "SDEDPMSolverPP",
    "SDEDPMSolverPPPublished",
    "SongLangevin",
    "TorchDiffEq",
    "TorchDiffEqAdjoint",
    "UniPC",
    "UniPCPublished",
]

from sde_diffusion.solvers.adams_bashforth import AdamsBashforth as AdamsBashforth
from sde_diffusion.solvers.adaptive_adams import AdaptiveAdams as AdaptiveAdams
from sde_diffusion.solvers.adaptive_dpm_solver import AdaptiveDPMSolver as AdaptiveDPMSolver
from sde_diffusion.solvers.adaptive_sde import AdaptiveSDE as AdaptiveSDE
from sde_diffusion.solvers.ancestral import Ancestral as Ancestral
from sde_diffusion.solvers.angular_adams import AngularAdams as AngularAdams
from sde_diffusion.solvers.angular_sde import AngularSDE as AngularSDE
from sde_diffusion.solvers.annealed_langevin import AnnealedLangevin as AnnealedLangevin
from sde_diffusion.solvers.corrector import Corrector as Corrector
from sde_diffusion.solvers.ddim import DDIM as DDIM
from sde_diffusion.solvers.ddpm import DDPM as DDPM
from sde_diffusion.solvers.deis import DEIS as DEIS
from sde_diffusion.solvers.dormand_prince import DormandPrince as DormandPrince
from sde_diffusion.solvers.dpm_solver import (
    DPMSolver as DPMSolver,
    DPMSolverMultistep as DPMSolverMultistep,
)
from sde_diffusion.solvers.dpm_solver_pp import (
    DPMSolverPP as DPMSolverPP,
    DPMSolverPPSinglestep as DPMSolverPPSinglestep,
)
from sde_diffusion.solvers.edm_heun import EDMHeun as EDMHeun
from sde_diffusion.solvers.edm_stochastic import EDMStochastic as EDMStochastic
from sde_diffusion.solvers.er_sde import ERSDE as ERSDE
from sde_diffusion.solvers.euler import Euler as Euler
from sde_diffusion.solvers.euler_maruyama import EulerMaruyama as EulerMaruyama
from sde_diffusion.solvers.heun import Heun as Heun
from sde_diffusion.solvers.ipndm import IPNDM as IPNDM
from sde_diffusion.solvers.langevin import Langevin as Langevin
from sde_diffusion.solvers.midpoint import Midpoint as Midpoint
from sde_diffusion.solvers.milstein import Milstein as Milstein
from sde_diffusion.solvers.picard import Picard as Picard
from sde_diffusion.solvers.plms import PLMS as PLMS
from sde_diffusion.solvers.predictor_corrector import PredictorCorrector as PredictorCorrector
from sde_diffusion.solvers.published.deis import DEISPublished as DEISPublished
from sde_diffusion.solvers.published.dpm_solver_pp import (
    DPMSolverPPPublished as DPMSolverPPPublished,
)
from sde_diffusion.solvers.published.ipndm import IPNDMPublished as IPNDMPublished
from sde_diffusion.solvers.published.plms import PLMSPublished as PLMSPublished
from sde_diffusion.solvers.published.sde_dpm_solver_pp import (
    SDEDPMSolverPPPublished as SDEDPMSolverPPPublished,
)
from sde_diffusion.solvers.published.unipc import UniPCPublished as UniPCPublished
from sde_diffusion.solvers.restart import Restart as Restart
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion as ReverseDiffusion
from sde_diffusion.solvers.runge_kutta import RungeKutta4 as RungeKutta4
from sde_diffusion.solvers.sa_solver import SASolver as SASolver
from sde_diffusion.solvers.sde_dpm_solver_pp import SDEDPMSolverPP as SDEDPMSolverPP
from sde_diffusion.solvers.seeds import SEEDS as SEEDS
from sde_diffusion.solvers.song_langevin import SongLangevin as SongLangevin
from sde_diffusion.solvers.sra import SRA as SRA
from sde_diffusion.solvers.torchdiffeq_adjoint import TorchDiffEqAdjoint as TorchDiffEqAdjoint
from sde_diffusion.solvers.torchdiffeq_methods import TorchDiffEq as TorchDiffEq
from sde_diffusion.solvers.unipc import UniPC as UniPC

__all__: list[str]

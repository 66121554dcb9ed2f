from sde_diffusion.exchange.exported import (
    ExportedModel as ExportedModel,
    save_diffusers as save_diffusers,
)
from sde_diffusion.exchange.scheduler import SolverScheduler as SolverScheduler

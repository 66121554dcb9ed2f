from sde_diffusion.ddpm.chain import Chain as Chain
from sde_diffusion.ddpm.discrete_bound import (
    DiscreteBound as DiscreteBound,
    StepTable as StepTable,
    step_bound as step_bound,
    vlb as vlb,
)
from sde_diffusion.ddpm.variances import (
    AnalyticVariance as AnalyticVariance,
    ForwardVariance as ForwardVariance,
    LearnedVariance as LearnedVariance,
    PosteriorVariance as PosteriorVariance,
)

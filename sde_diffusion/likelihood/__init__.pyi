from sde_diffusion.likelihood.continuous_bound import (
    Bound as Bound,
    elbo as elbo,
    score_form as score_form,
)
from sde_diffusion.likelihood.decoders import (
    BinDecoder as BinDecoder,
    GaussianDecoder as GaussianDecoder,
    LevelDecoder as LevelDecoder,
)
from sde_diffusion.likelihood.dequantization import (
    DiscreteLogLikelihood as DiscreteLogLikelihood,
    TruncatedNormal as TruncatedNormal,
    Uniform as Uniform,
    discrete_log_prob as discrete_log_prob,
    importance_weighted as importance_weighted,
)
from sde_diffusion.likelihood.divergence import (
    Exact as Exact,
    Hutchinson as Hutchinson,
    HutchPlusPlus as HutchPlusPlus,
)
from sde_diffusion.likelihood.fastest_mode import fastest as fastest
from sde_diffusion.likelihood.flow import (
    Density as Density,
    LogLikelihood as LogLikelihood,
    frozen as frozen,
    log_prob as log_prob,
    prior_of as prior_of,
)
from sde_diffusion.likelihood.flow_variables import Angle as Angle, LogSNR as LogSNR, Time as Time
from sde_diffusion.likelihood.hidden_parts import (
    HiddenPartsBound as HiddenPartsBound,
    hidden_parts_bound as hidden_parts_bound,
)
from sde_diffusion.likelihood.latent_bound import (
    LatentLogLikelihood as LatentLogLikelihood,
    latent_log_prob as latent_log_prob,
)
from sde_diffusion.likelihood.learned_dequantization import (
    Variational as Variational,
    fit_dequantizer as fit_dequantizer,
)
from sde_diffusion.likelihood.log_det import (
    ArnoldiLogDet as ArnoldiLogDet,
    ExactLogDet as ExactLogDet,
)
from sde_diffusion.likelihood.sampler_density import (
    SamplerDensity as SamplerDensity,
    check_injective as check_injective,
    first_fold as first_fold,
    sampler_log_prob as sampler_log_prob,
)

from sde_diffusion.inverse_problems.certificate import (
    PosteriorCertificate as PosteriorCertificate,
    certify_posteriors as certify_posteriors,
)
from sde_diffusion.inverse_problems.exact import exact_posterior as exact_posterior
from sde_diffusion.inverse_problems.inpainting import repaint as repaint
from sde_diffusion.inverse_problems.likelihood_scores import (
    DPS as DPS,
    MMPS as MMPS,
    TMPD as TMPD,
    DenseMMPS as DenseMMPS,
    DiffPIR as DiffPIR,
    Guess as Guess,
    LikelihoodScore as LikelihoodScore,
    PiGDM as PiGDM,
    PlugIn as PlugIn,
)
from sde_diffusion.inverse_problems.measurement import Measurement as Measurement
from sde_diffusion.inverse_problems.measurement_noise import (
    GaussianNoise as GaussianNoise,
    LaplaceNoise as LaplaceNoise,
    MeasurementNoise as MeasurementNoise,
    OwnNoise as OwnNoise,
    PoissonNoise as PoissonNoise,
)
from sde_diffusion.inverse_problems.operators import (
    Blur as Blur,
    Downsample as Downsample,
    Grey as Grey,
    LinearOperator as LinearOperator,
    Magnitudes as Magnitudes,
    Mask as Mask,
    Matrix as Matrix,
    Nonlinear as Nonlinear,
    Operator as Operator,
)
from sde_diffusion.inverse_problems.particles import (
    PosteriorSamples as PosteriorSamples,
    sample_posterior as sample_posterior,
)
from sde_diffusion.inverse_problems.posterior import PosteriorScore as PosteriorScore

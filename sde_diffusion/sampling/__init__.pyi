from sde_diffusion.sampling.captured import CapturedSampler as CapturedSampler
from sde_diffusion.sampling.encoding import (
    Reconstruction as Reconstruction,
    decode as decode,
    encode as encode,
    interpolate as interpolate,
    reconstruct as reconstruct,
)
from sde_diffusion.sampling.few_steps import (
    FewSteps as FewSteps,
    Renoised as Renoised,
    equal_angles as equal_angles,
)
from sde_diffusion.sampling.finite import (
    FiniteSamples as FiniteSamples,
    sample_finite as sample_finite,
)
from sde_diffusion.sampling.generate import sample as sample
from sde_diffusion.sampling.grid_fitting import optimised as optimised
from sde_diffusion.sampling.inversion import (
    FixedPoint as FixedPoint,
    Inverse as Inverse,
    Newton as Newton,
    sampler_inverse as sampler_inverse,
)
from sde_diffusion.sampling.shared import Draws as Draws, draw as draw
from sde_diffusion.sampling.tilting import Tilted as Tilted, sample_tilted as sample_tilted

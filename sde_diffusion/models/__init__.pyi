from sde_diffusion.models.classifier import ClassifierGuided as ClassifierGuided
from sde_diffusion.models.conditioned import Conditioned as Conditioned
from sde_diffusion.models.conventions import (
    ConventionCheck as ConventionCheck,
    check_convention as check_convention,
)
from sde_diffusion.models.exact import (
    Gaussian as Gaussian,
    GaussianMixture as GaussianMixture,
    fit_gaussian as fit_gaussian,
)
from sde_diffusion.models.few_steps import FewStepModel as FewStepModel
from sde_diffusion.models.guidance import (
    GuidanceInterval as GuidanceInterval,
    Guided as Guided,
    guided as guided,
)
from sde_diffusion.models.matrix import MatrixScoreModel as MatrixScoreModel
from sde_diffusion.models.rounded import in_precision as in_precision
from sde_diffusion.models.score import DirectScore as DirectScore, ScoreModel as ScoreModel
from sde_diffusion.models.thresholding import (
    DynamicThreshold as DynamicThreshold,
    StaticThreshold as StaticThreshold,
)
from sde_diffusion.models.wrapped import ClassLabels as ClassLabels

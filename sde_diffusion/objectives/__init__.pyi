from sde_diffusion.objectives.autoencoding import (
    AutoencoderBound as AutoencoderBound,
    autoencoder_loss as autoencoder_loss,
)
from sde_diffusion.objectives.base import Batch as Batch, Drawn as Drawn, Objective as Objective
from sde_diffusion.objectives.consistency import (
    Consistency as Consistency,
    ContinuousConsistency as ContinuousConsistency,
    MeanFlow as MeanFlow,
)
from sde_diffusion.objectives.denoising import (
    Denoising as Denoising,
    Explicit as Explicit,
    denoising_loss as denoising_loss,
    explicit_loss as explicit_loss,
)
from sde_diffusion.objectives.discrete_bound import Hybrid as Hybrid, Vlb as Vlb
from sde_diffusion.objectives.flow_maps import (
    FlowMapRegression as FlowMapRegression,
    FlowPaths as FlowPaths,
    ProgressiveDistillation as ProgressiveDistillation,
    flow_paths as flow_paths,
)
from sde_diffusion.objectives.hybrid_score_matching import (
    HybridScoreMatching as HybridScoreMatching,
    hybrid_loss as hybrid_loss,
)
from sde_diffusion.objectives.score_matching import (
    Implicit as Implicit,
    Paths as Paths,
    Sliced as Sliced,
    implicit_loss as implicit_loss,
    sliced_loss as sliced_loss,
)
from sde_diffusion.objectives.students import (
    DataTrajectory as DataTrajectory,
    TeacherTrajectory as TeacherTrajectory,
    Trajectory as Trajectory,
    tangent as tangent,
)

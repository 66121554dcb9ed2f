from sde_diffusion._block_matrix import BlockMatrix as BlockMatrix
from sde_diffusion._watch import DivergedError as DivergedError
from sde_diffusion.brownian import BrownianPath as BrownianPath
from sde_diffusion.checkpoints.checkpoint import (
    describe as describe,
    load as load,
    load_autoencoder as load_autoencoder,
    load_direct as load_direct,
    load_latent as load_latent,
    save_model as save_model,
)
from sde_diffusion.counter_noise import CounterNoise as CounterNoise
from sde_diffusion.data.dataset import Dataset as Dataset, load_data as load_data
from sde_diffusion.data.scaling import Affine as Affine, Logit as Logit
from sde_diffusion.data.spec import DataSpec as DataSpec
from sde_diffusion.ddpm.chain import Chain as Chain
from sde_diffusion.ddpm.discrete_bound import DiscreteBound as DiscreteBound, vlb as vlb
from sde_diffusion.ddpm.variances import (
    AnalyticVariance as AnalyticVariance,
    ForwardVariance as ForwardVariance,
    LearnedVariance as LearnedVariance,
    PosteriorVariance as PosteriorVariance,
)
from sde_diffusion.dynamics import (
    ODE as ODE,
    ProbabilityFlow as ProbabilityFlow,
    ReverseSDE as ReverseSDE,
)
from sde_diffusion.evaluation.auditing import audit as audit
from sde_diffusion.evaluation.evaluator import Evaluator as Evaluator
from sde_diffusion.evaluation.ledger import Ledger as Ledger
from sde_diffusion.evaluation.results import Evaluation as Evaluation
from sde_diffusion.evaluation.run import evaluate as evaluate
from sde_diffusion.evaluation.settings import EvaluationSettings as EvaluationSettings
from sde_diffusion.evaluation.tuning import audited as audited, tuned as tuned
from sde_diffusion.foreign.diffusers_autoencoder import (
    autoencoder_from_diffusers as autoencoder_from_diffusers,
)
from sde_diffusion.foreign.diffusers_folder import from_diffusers as from_diffusers
from sde_diffusion.foreign.foreign_weights import ForeignWeights as ForeignWeights
from sde_diffusion.foreign.score_sde import from_score_sde as from_score_sde
from sde_diffusion.foreign.transformers_text import (
    encoder_from_transformers as encoder_from_transformers,
)
from sde_diffusion.foreign.weights import (
    convert_weights as convert_weights,
    read_weights as read_weights,
)
from sde_diffusion.grids import (
    Denoised as Denoised,
    angular as angular,
    cosine as cosine,
    exponential as exponential,
    karras as karras,
    log_snr as log_snr,
    polynomial as polynomial,
    quadratic as quadratic,
    recommended as recommended,
    sigmoid as sigmoid,
    uniform as uniform,
)
from sde_diffusion.integration import Solution as Solution, integrate as integrate
from sde_diffusion.latents.convolutional import (
    ConvolutionalAutoencoder as ConvolutionalAutoencoder,
)
from sde_diffusion.latents.encoder_decoder import (
    EncoderDecoder as EncoderDecoder,
    GaussianAutoencoder as GaussianAutoencoder,
)
from sde_diffusion.latents.latent_model import LatentModel as LatentModel
from sde_diffusion.latents.linear import LinearAutoencoder as LinearAutoencoder
from sde_diffusion.lattices import (
    lattice as lattice,
    leading as leading,
    linspace as linspace,
    trailing as trailing,
)
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
from sde_diffusion.likelihood.flow import LogLikelihood as LogLikelihood, log_prob as log_prob
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
from sde_diffusion.matrix_sde import (
    CriticallyDampedLangevin as CriticallyDampedLangevin,
    MatrixLinearSDE as MatrixLinearSDE,
    OrnsteinUhlenbeck as OrnsteinUhlenbeck,
)
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
from sde_diffusion.models.score import DirectScore as DirectScore, ScoreModel as ScoreModel
from sde_diffusion.models.thresholding import (
    DynamicThreshold as DynamicThreshold,
    StaticThreshold as StaticThreshold,
)
from sde_diffusion.models.wrapped import ClassLabels as ClassLabels
from sde_diffusion.multistep import Multistep as Multistep, Step as Step
from sde_diffusion.nets.conditions import (
    ConditionalNetwork as ConditionalNetwork,
    context_of as context_of,
)
from sde_diffusion.nets.dit import DiT as DiT
from sde_diffusion.nets.mlp import MLP as MLP
from sde_diffusion.nets.unet import UNet as UNet
from sde_diffusion.noise import (
    Noise as Noise,
    PerSampleNoise as PerSampleNoise,
    WhiteNoise as WhiteNoise,
)
from sde_diffusion.objectives.autoencoding import (
    AutoencoderBound as AutoencoderBound,
    autoencoder_loss as autoencoder_loss,
)
from sde_diffusion.objectives.base import Objective as Objective
from sde_diffusion.objectives.denoising import (
    Denoising as Denoising,
    Explicit as Explicit,
    denoising_loss as denoising_loss,
    explicit_loss as explicit_loss,
)
from sde_diffusion.objectives.discrete_bound import Hybrid as Hybrid, Vlb as Vlb
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
from sde_diffusion.parallel.processes import Processes as Processes
from sde_diffusion.priors import prior_mismatch as prior_mismatch
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
from sde_diffusion.sampling.tilting import Tilted as Tilted, sample_tilted as sample_tilted
from sde_diffusion.schedules import (
    Beta as Beta,
    CosineBeta as CosineBeta,
    DiscreteBeta as DiscreteBeta,
    LinearBeta as LinearBeta,
    cosine_betas as cosine_betas,
    linear_betas as linear_betas,
    scaled_linear_betas as scaled_linear_betas,
    sigmoid_betas as sigmoid_betas,
    zero_terminal_snr as zero_terminal_snr,
)
from sde_diffusion.scores import FunctionScore as FunctionScore, ScoreLike as ScoreLike
from sde_diffusion.sde import (
    EDMSDE as EDMSDE,
    SDE as SDE,
    VESDE as VESDE,
    VPSDE as VPSDE,
    LinearSDE as LinearSDE,
    RectifiedFlow as RectifiedFlow,
    SubVPSDE as SubVPSDE,
)
from sde_diffusion.solver import (
    Adaptive as Adaptive,
    OneStep as OneStep,
    Reached as Reached,
    Solver as Solver,
)
from sde_diffusion.training.config import TrainingConfig as TrainingConfig
from sde_diffusion.training.loggers import Logger as Logger, TensorBoard as TensorBoard
from sde_diffusion.training.loop import train as train
from sde_diffusion.training.monitors import (
    HeldOutBound as HeldOutBound,
    LossByLevel as LossByLevel,
    Monitor as Monitor,
    SamplePicture as SamplePicture,
)
from sde_diffusion.training.objective_by_name import objective_of as objective_of
from sde_diffusion.training.post_hoc import reconstruct_average as reconstruct_average
from sde_diffusion.training.precision import compiled as compiled

__version__: str
from sde_diffusion.models.reflected import ReflectedPoints as ReflectedPoints
from sde_diffusion.objectives.reflected_score_matching import (
    ReflectedScoreMatching as ReflectedScoreMatching,
)
from sde_diffusion.reflected_sde import ReflectedDiffusion as ReflectedDiffusion

from sde_diffusion.evaluation.auditing import audit as audit
from sde_diffusion.evaluation.evaluator import Evaluator as Evaluator
from sde_diffusion.evaluation.ledger import Ledger as Ledger
from sde_diffusion.evaluation.results import Evaluation as Evaluation, Summary as Summary
from sde_diffusion.evaluation.rounding import (
    RoundingError as RoundingError,
    likelihood_rounding as likelihood_rounding,
    rounding_errors as rounding_errors,
)
from sde_diffusion.evaluation.run import evaluate as evaluate, logged as logged
from sde_diffusion.evaluation.settings import EvaluationSettings as EvaluationSettings
from sde_diffusion.evaluation.tuning import audited as audited, tuned as tuned

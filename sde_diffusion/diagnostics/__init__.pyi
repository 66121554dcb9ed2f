from sde_diffusion.diagnostics.comparison import (
    HELD_OUT as HELD_OUT,
    THE_FLOW as THE_FLOW,
    Comparison as Comparison,
    ComparisonRow as ComparisonRow,
    Kept as Kept,
    OnSolve as OnSolve,
    Problem as Problem,
    Student as Student,
    compare as compare,
    flow_samples as flow_samples,
)
from sde_diffusion.diagnostics.convergence import (
    TOLERANCE as TOLERANCE,
    Certificate as Certificate,
    Convergence as Convergence,
    Kind as Kind,
    OrderMeasurement as OrderMeasurement,
    declared as declared,
)
from sde_diffusion.diagnostics.coverage import (
    Coverage as Coverage,
    precision_recall as precision_recall,
)
from sde_diffusion.diagnostics.doubling import Rule as Rule
from sde_diffusion.diagnostics.metrics import (
    Interval as Interval,
    Reference as Reference,
    directions as directions,
    frechet_distance as frechet_distance,
    median_distance as median_distance,
    mmd as mmd,
    paired_interval as paired_interval,
    rms_distance as rms_distance,
    sliced_wasserstein as sliced_wasserstein,
)
from sde_diffusion.diagnostics.model_comparison import (
    METRICS as METRICS,
    ModelDifference as ModelDifference,
    differences as differences,
)
from sde_diffusion.diagnostics.model_orders import model_convergence as model_convergence
from sde_diffusion.diagnostics.orders import (
    certify as certify,
    ends as ends,
    observed_order as observed_order,
    ode_convergence as ode_convergence,
    strong_convergence as strong_convergence,
    weak_convergence as weak_convergence,
)

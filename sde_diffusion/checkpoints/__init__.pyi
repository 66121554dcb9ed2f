from sde_diffusion.checkpoints.checkpoint import (
    describe as describe,
    load as load,
    load_direct as load_direct,
    save_model as save_model,
)
from sde_diffusion.checkpoints.foreign_weights import (
    ForeignWeights as ForeignWeights,
    convert_weights as convert_weights,
    read_weights as read_weights,
)

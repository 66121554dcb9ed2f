from sde_diffusion.checkpoints.checkpoint import (
    describe as describe,
    load as load,
    load_direct as load_direct,
    save_model as save_model,
)

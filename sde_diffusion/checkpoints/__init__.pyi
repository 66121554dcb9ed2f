from sde_diffusion.checkpoints.checkpoint import (
    describe as describe,
    load as load,
    load_autoencoder as load_autoencoder,
    load_direct as load_direct,
    load_latent as load_latent,
    save_model as save_model,
)

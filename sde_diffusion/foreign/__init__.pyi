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

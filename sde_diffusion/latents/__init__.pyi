from sde_diffusion.latents.autoencoder import Autoencoder as Autoencoder, Encoded as Encoded
from sde_diffusion.latents.convolutional import (
    ConvolutionalAutoencoder as ConvolutionalAutoencoder,
)
from sde_diffusion.latents.encoder_decoder import (
    EncoderDecoder as EncoderDecoder,
    GaussianAutoencoder as GaussianAutoencoder,
)
from sde_diffusion.latents.latent_model import LatentModel as LatentModel
from sde_diffusion.latents.linear import LinearAutoencoder as LinearAutoencoder

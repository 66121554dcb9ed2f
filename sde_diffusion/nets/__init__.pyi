from sde_diffusion.nets.conditions import (
    ConditionalNetwork as ConditionalNetwork,
    context_of as context_of,
)
from sde_diffusion.nets.dit import DiT as DiT
from sde_diffusion.nets.mlp import MLP as MLP
from sde_diffusion.nets.unet import UNet as UNet

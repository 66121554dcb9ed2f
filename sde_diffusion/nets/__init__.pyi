from sde_diffusion.nets.dit import DiT as DiT
from sde_diffusion.nets.mlp import MLP as MLP
from sde_diffusion.nets.unet import UNet as UNet

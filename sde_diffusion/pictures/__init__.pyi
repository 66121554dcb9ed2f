from sde_diffusion.pictures.clips import clip_animation as clip_animation
from sde_diffusion.pictures.comparisons import (
    error_picture as error_picture,
    solver_picture as solver_picture,
)
from sde_diffusion.pictures.likelihoods import likelihood_picture as likelihood_picture
from sde_diffusion.pictures.orders import order_picture as order_picture
from sde_diffusion.pictures.runs import curves_picture as curves_picture
from sde_diffusion.pictures.samples import sample_picture as sample_picture, tiles as tiles

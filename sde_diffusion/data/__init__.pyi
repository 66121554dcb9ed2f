from sde_diffusion.data.dataset import Dataset as Dataset, load_data as load_data
from sde_diffusion.data.scaling import Affine as Affine, Logit as Logit
from sde_diffusion.data.sounds import write_sounds as write_sounds
from sde_diffusion.data.spec import DataSpec as DataSpec

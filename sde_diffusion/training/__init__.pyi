from sde_diffusion.training.config import TrainingConfig as TrainingConfig
from sde_diffusion.training.loggers import Logger as Logger, TensorBoard as TensorBoard
from sde_diffusion.training.loop import train as train
from sde_diffusion.training.monitors import (
    HeldOutBound as HeldOutBound,
    LossByLevel as LossByLevel,
    Monitor as Monitor,
    SamplePicture as SamplePicture,
)
from sde_diffusion.training.objective_by_name import objective_of as objective_of
from sde_diffusion.training.post_hoc import reconstruct_average as reconstruct_average

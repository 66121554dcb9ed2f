from sde_diffusion.parallel.processes import Processes as Processes

from sde_diffusion.exchange.azula_peer import AzulaPeer as AzulaPeer
from sde_diffusion.exchange.diffusers_peer import DiffusersPeer as DiffusersPeer
from sde_diffusion.exchange.exported import (
    ExportedModel as ExportedModel,
    save_diffusers as save_diffusers,
)
from sde_diffusion.exchange.peers import FunctionPeer as FunctionPeer, Peer as Peer
from sde_diffusion.exchange.scheduler import SolverScheduler as SolverScheduler

from sde_diffusion.coding.compression import compress as compress, decompress as decompress

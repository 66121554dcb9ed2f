"""The models that ship with the package, one ``NAME.safetensors`` each; see `checkpoint.load`."""

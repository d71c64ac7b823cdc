"""`python -m autoregressive_diffusion_pytorch`: the command line."""

from .cli import main

main()

"""`python -m autoregressive_diffusion_pytorch`: the command line, for launchers that start modules."""

from autoregressive_diffusion_pytorch.cli import main

main()

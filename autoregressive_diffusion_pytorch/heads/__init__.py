"""The generative heads: each draws one token from its condition."""

from autoregressive_diffusion_pytorch.heads.denoising import DenoisingHead
from autoregressive_diffusion_pytorch.heads.elucidated_diffusion import ElucidatedDiffusion
from autoregressive_diffusion_pytorch.heads.guidance import Guidance
from autoregressive_diffusion_pytorch.heads.head import Head
from autoregressive_diffusion_pytorch.heads.rectified_flow import RectifiedFlow

__all__ = ["DenoisingHead", "ElucidatedDiffusion", "Guidance", "Head", "RectifiedFlow"]

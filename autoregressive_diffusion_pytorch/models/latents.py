"""Latents."""


def need_diffusers() -> None:
    """Raises a ModuleNotFoundError, which says what to install, if diffusers is not there."""
    try:
        import diffusers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "autoencoders come with diffusers, which is not installed: "
            "pip install 'autoregressive-diffusion-pytorch[latents]'"
        ) from error

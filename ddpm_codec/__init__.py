"""ddpm-codec: rate-distortion and progressive coding with denoising diffusion models."""

__version__ = "0.1.0"

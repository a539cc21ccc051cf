"""diffusers' network in the shape of google/ddpm-cifar10-32: shared by benchmarks."""

from diffusers import UNet2DModel


def ddpm_unet(widths, **options):
    """A UNet2DModel for 32x32 with these channels at its four levels, attention at the second."""
    return UNet2DModel(
        sample_size=32, block_out_channels=widths, layers_per_block=2, freq_shift=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None, flip_sin_to_cos=False, downsample_padding=0, **options,
    )  # fmt: skip

"""`import` and `export`: other projects' checkpoints."""

from pathlib import Path

import click

from ddpm_codec import checkpoint
from ddpm_codec.cli.common import FilePath, ckpt_option, load_checkpoint
from ddpm_codec.errors import CheckpointError
from ddpm_codec.files import check_outputs
from ddpm_codec.interop import load_diffusers, load_state_dict, save_diffusers
from ddpm_codec.schedule import Kind
from ddpm_codec.unet import parameter_count


@click.command("import")
@click.argument("source", type=FilePath)
@click.option("-o", "--out", type=FilePath, required=True, help="Checkpoint to write.")
@click.option("--heads", type=click.IntRange(1), default=4, show_default=True,
              help="Attention heads of OpenAI's networks.")  # fmt: skip
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), default="linear",
              show_default=True, help="Noise schedule of OpenAI's networks.")  # fmt: skip
@click.option("--diffusion-steps", "T", type=click.IntRange(2), default=1000, show_default=True,
              help="T of OpenAI's networks.")  # fmt: skip
def import_command(source: Path, out: Path, heads: int, schedule: Kind, T: int) -> None:
    """Import a model: a diffusers DDPM folder, or a state dict named as in pesser/pytorch_diffusion
    (of the `paper` preset's architecture), openai/improved-diffusion or guided-diffusion.

    Then `calibrate` it; `nll --variance beta`, `rd-curve` and `send` work as on one's own, and
    `nll --variance learned` where OpenAI's networks have learned one.
    """
    check_outputs([out], [source])
    if source.is_dir():
        found = load_diffusers(source)
    elif source.exists():
        found = load_state_dict(source, heads, schedule, T)
    else:
        raise CheckpointError(f"{source}: no such file or folder")
    checkpoint.save(found, out)
    network = checkpoint.build_network(found.config)
    click.echo(
        f"{source} -> {out}: {parameter_count(network):,} parameters, model {found.hash[:16]}"
    )


@click.command("export")
@ckpt_option
@click.option("-o", "--out", type=FilePath, required=True, help="Folder to write.")
def export_command(ckpt: Path | None, out: Path) -> None:
    """Export a model of the paper's architecture as a diffusers DDPM folder."""
    save_diffusers(load_checkpoint(ckpt), out)
    click.echo(f"{out}: a DDPMPipeline folder")

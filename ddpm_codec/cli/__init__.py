"""The command line: parse, call the public API, map errors to exit statuses."""

import click

import ddpm_codec
from ddpm_codec.cli import archive, calibrate, coding, demo, generate, interop, measure, train
from ddpm_codec.errors import DdpmCodecError
from ddpm_codec.memory import keep_freed_memory


class _Commands(click.Group):
    """Maps `DdpmCodecError` to one line on standard error and exit status 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DdpmCodecError as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(" ".join(str(error).split())) from error
        except OSError as error:  # what no command foresaw
            if ctx.params["debug"] or error.filename is None:
                raise
            text = f"{str(error.filename)[:200]}: {(error.strerror or str(error)).lower()}"
            raise click.ClickException(text) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ddpm_codec.__version__, prog_name="ddpm-codec")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Codelengths, rate-distortion curves and progressive coding with diffusion models."""
    keep_freed_memory()


for _command in (
    demo.demo,
    train.train,
    calibrate.calibrate_command,
    calibrate.plan_command,
    interop.import_command,
    interop.export_command,
    measure.nll,
    measure.rd_curve,
    generate.sample,
    generate.interpolate,
    coding.send_command,
    coding.receive,
    coding.info,
    coding.truncate_command,
    archive.pack_command,
    archive.unpack_command,
):
    main.add_command(_command)

"""The command line: parse, call the public API, map errors to exit statuses."""

from importlib import import_module

import click

import ddpm_codec
from ddpm_codec.errors import DdpmCodecError
from ddpm_codec.memory import keep_freed_memory

_COMMANDS = {  # module and function of each: a module is imported when its command is called
    "calibrate": ("calibrate", "calibrate_command"),
    "demo": ("demo", "demo"),
    "export": ("interop", "export_command"),
    "import": ("interop", "import_command"),
    "info": ("coding", "info"),
    "interpolate": ("generate", "interpolate"),
    "nll": ("measure", "nll"),
    "pack": ("archive", "pack_command"),
    "plan": ("calibrate", "plan_command"),
    "rd-curve": ("measure", "rd_curve"),
    "receive": ("coding", "receive"),
    "sample": ("generate", "sample"),
    "send": ("coding", "send_command"),
    "train": ("train", "train"),
    "truncate": ("coding", "truncate_command"),
    "unpack": ("archive", "unpack_command"),
}


class _Commands(click.Group):
    """Maps `DdpmCodecError` to one line on standard error and exit status 1.

    A command is imported when it is asked for: those that draw nothing start without matplotlib
    and pandas, which take a second.
    """

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, function = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"ddpm_codec.cli.{module}"), function)
        return command

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


for _name in _COMMANDS:
    main.add_command(click.Command(_name))  # its name alone: get_command imports the command

"""Oracle 9: the README's examples run as they are printed, but for install and test lines.

`--minutes 60` becomes `--steps 2` here, and `calibrate` gets `--limit 1`.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddpm_codec.cli import main, train
from ddpm_codec.data import load_batch, write_image

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README.read_text(), re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if line.startswith("ddpm-codec ")
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which `photos` and `other-photos` exist."""
    folder = tmp_path_factory.mktemp("readme")
    pictures = load_batch("sample").permute(0, 2, 3, 1).numpy()
    for name, some in (("photos", pictures[:8]), ("other-photos", pictures[8:10])):
        (folder / name).mkdir()
        for i, picture in enumerate(some):
            write_image(folder / name / f"{i}.png", picture.repeat(2, 0).repeat(2, 1))
    write_image(folder / "picture.png", pictures[8])
    return folder


def test_every_command_of_the_readme_runs(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(train, "VALIDATION_CROPS", 4)  # 256 take minutes
    assert len(COMMANDS) >= 7
    for line in COMMANDS:
        short = line.replace("--minutes 60", "--steps 2")
        if "calibrate" in line:
            short += " --limit 1"
        result = CliRunner().invoke(main, shlex.split(short)[1:])
        assert result.exit_code == 0, (line, result.output, result.exception)


def test_the_python_example_runs(capsys):
    [code] = [block for kind, block in BLOCKS if kind == "python"]
    exec(compile(code, "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 8


def test_ci_runs_the_readmes_test_command():
    text = README.read_text()
    line = re.search(r"<!-- tests -->\n```sh\n(.*)\n```", text).group(1)
    assert line.endswith(".venv/bin/pytest")

"""Imports go downward: no module imports one of its own floor or of a floor above."""

import ast
from pathlib import Path

import pytest

import ddpm_codec

FLOORS = [
    {"units", "errors", "files", "distributed", "memory", "parallel", "precision"},
    {"configuration", "schedule", "gaussian", "discretized", "bands", "unet_config", "exact"},
    {
        "layers",
        "unet",
        "data",
        "cifar10",
        "conditional",
        "container",
        "crops",
        "entropy",
        "header",
        "muon",
        "prefix",
        "pixel_code",
        "shared_randomness",
    },
    {"diffusion", "tiling", "optimizers"},
    {"checkpoint", "reverse"},
    {"bound", "objectives", "stepping", "constant_rate", "relative_entropy"},
    {"training", "calibration", "interop", "interop_names", "interop_openai", "ledger", "codec"},
    {"outgoing", "receiving"},
    {"sending"},
    {"rate_distortion", "bits_back"},
    {"plots", "archive"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Pairs within a floor, in this order only.
SAME_FLOOR = {
    ("discretized", "gaussian"),
    ("errors", "units"),
    ("files", "errors"),
    ("distributed", "errors"),
    ("container", "entropy"),
    ("container", "header"),
    ("header", "entropy"),
    ("stepping", "bound"),
    ("stepping", "relative_entropy"),
    ("constant_rate", "bound"),
    ("interop", "interop_names"),
    ("interop", "interop_openai"),
    ("constant_rate", "relative_entropy"),
    ("prefix", "entropy"),
    ("unet", "layers"),
    ("data", "cifar10"),
    ("crops", "data"),
}
RESTRICTED = 'torch.load(path, map_location="cpu", weights_only=True)'
ROOT = Path(ddpm_codec.__file__).parent
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ddpm_codec":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpm_codec."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {n[1] for n in names if n[0] == "ddpm_codec" and len(n) > 1}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    here = room(path)
    for other in imported_rooms(path) - {here}:
        allowed = FLOOR[other] < FLOOR[here] or (here, other) in SAME_FLOOR
        assert allowed, f"{here} (floor {FLOOR[here]}) imports {other} (floor {FLOOR[other]})"


def test_only_plots_imports_matplotlib():
    users = {room(p) for p in MODULES if "import matplotlib" in p.read_text()}
    assert users == {"plots"}


def test_nothing_unpickles():
    for path in MODULES:
        text = path.read_text()
        assert "pickle.load" not in text
        assert "torch.load(" not in text.replace(RESTRICTED, "")
        assert "allow_pickle=True" not in text

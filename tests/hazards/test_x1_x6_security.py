"""Rows X1, X2, X5 and X6: no foreign code runs, nobody is called, and no dangerous call is in the source."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparseg
from predict.threshold_model import save_tiny_model
from sparseg.checkpoints.adapters import read_foreign_state
from sparseg.checkpoints.card import ModelCard
from sparseg.checkpoints.folder import CARD, WEIGHTS, load_model, save_model
from sparseg.config import load_yaml
from sparseg.errors import CheckpointError, ConfigError, SparsegError
from sparseg.models.build import build_segmenter
from sparseg.preprocessing.config import PAPER_ABDOMEN_CT
from sparseg.training.state import FOLDER, Progress, State, load_state, save_state
from sparseg.volumes.io import read_volume
from sparseg.volumes.nifti_writer import write_image
from sparseg.volumes.phantoms import make_phantom

from .figures import Figure

ROOT = Path(sparseg.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


class MakesMarker:
    """Pickled, it makes a file on being loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    path = tmp_path / "marker"
    pickle.loads(pickle.dumps(MakesMarker(path)))
    assert path.exists(), "the trap itself must work"
    path.unlink()
    return path


def traps(marker: Path) -> dict[str, bytes]:
    """The same trap as a plain pickle and inside torch's zip format."""
    zipped = marker.with_name("zipped.pt")
    torch.save({"state_dict": {"a": torch.ones(1)}, "trap": MakesMarker(marker)}, zipped)
    return {"pickle": pickle.dumps({"a": MakesMarker(marker)}, protocol=2), "zip": zipped.read_bytes()}


@pytest.mark.hazard("X1", "foreign code run")
@pytest.mark.parametrize("kind", ["pickle", "zip"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.pkl", "weights.bin"])
def test_x1_foreign_weights_never_run(tmp_path: Path, marker: Path, kind: str, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(traps(marker)[kind])
    with pytest.raises(CheckpointError) as caught:
        read_foreign_state(file)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.hazard("X1", "foreign code run")
@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_x1_the_state_of_a_run_never_runs(tmp_path: Path, marker: Path, kind: str) -> None:
    save_state(tmp_path, State(Progress(step=1), {}, {}))
    (tensors,) = (tmp_path / FOLDER).glob("*.pt")
    (record,) = (tmp_path / FOLDER).glob("*.json")
    tensors.write_bytes(traps(marker)[kind])
    # Whoever can replace the tensors can replace the hash that vouches for them, too.
    content = json.loads(record.read_text()) | {"sha256": hashlib.sha256(tensors.read_bytes()).hexdigest()}
    record.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="must be readable"):
        load_state(tmp_path)
    assert not marker.exists()


@pytest.mark.hazard("X1", "foreign code run")
@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_x1_model_folders_never_run(tmp_path: Path, marker: Path, kind: str) -> None:
    net = build_segmenter("test_tiny", feature_size=1)
    labels = {0: "background", 1: "a", 2: "b"}
    card = ModelCard(model=net.config, preprocess=PAPER_ABDOMEN_CT, channels=("CT",), labels=labels)
    save_model(tmp_path / "model", net, card)
    (tmp_path / "model" / CARD).write_text(card.model_dump_json())  # vouches for no hash
    (tmp_path / "model" / WEIGHTS).write_bytes(traps(marker)[kind])
    with pytest.raises(CheckpointError, match="the weights must be readable"):
        load_model(tmp_path / "model")
    assert not marker.exists()


@pytest.mark.hazard("X1", "foreign code run")
@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:pathlib.Path.touch [{marker}]\n",
        "a: !!python/object/new:pathlib.Path [{marker}]\n",
        "!!python/name:os.system\n",
    ],
)
def test_x1_yaml_tags_never_run(tmp_path: Path, marker: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text.format(marker=marker))
    with pytest.raises(ConfigError, match="must be valid YAML"):
        load_yaml(file)
    assert not marker.exists()


@pytest.mark.hazard("X1", "foreign code run")
def test_x1_class_names_in_settings_are_only_unknown_keys(tmp_path: Path, marker: Path) -> None:
    with pytest.raises(ConfigError, match="unknown configuration key"):
        build_segmenter("test_tiny", _target_="pathlib.Path.touch", path=str(marker))
    file = tmp_path / "config.yaml"
    file.write_text("a: $import pathlib; pathlib.Path('m').touch()\n")
    assert load_yaml(file) == {"a": "$import pathlib; pathlib.Path('m').touch()"}
    assert not marker.exists()


@pytest.mark.hazard("X1", "foreign code run")
@pytest.mark.parametrize("name", ["case.npy", "case.npz", "case.pkl", "case.pt", "case.nii", "case.nii.gz"])
def test_x1_images_never_run(tmp_path: Path, marker: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith("npy"):
        np.save(file, np.array([MakesMarker(marker)], dtype=object), allow_pickle=True)
    elif name.endswith("npz"):
        np.savez(file, np.array([MakesMarker(marker)], dtype=object))
    else:
        file.write_bytes(traps(marker)["pickle"])
    with pytest.raises(SparsegError):
        read_volume(file)
    assert not marker.exists()


class Unknown:
    """Harmless, but no tensor: the only fault of a checkpoint."""


@pytest.mark.hazard("X2", "second tries")
def test_x2_one_unknown_global_is_refused_without_a_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": Unknown()}, file)
    calls: list[Any] = []
    real = torch.load

    def load(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs.get("weights_only"))
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError):
        read_foreign_state(file)
    assert calls == [True]


class TestX5:
    """Row X5: the suite cannot leave the machine; see tests/conftest.py."""

    @pytest.mark.hazard("X5", "blocks that let a call out")
    @pytest.mark.parametrize("address", ["192.0.2.1", "example.invalid"])
    def test_x5_outside_is_blocked(self, address: str) -> None:
        with socket.socket() as sock:
            sock.settimeout(0.1)
            for call in (sock.connect, sock.connect_ex):
                with pytest.raises(AssertionError, match="without the network mark"):
                    call((address, 9))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with datagrams, pytest.raises(AssertionError, match="without the network mark"):
            datagrams.sendto(b"x", (address, 9))

    def test_x5_this_machine_is_not(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            client.connect(server.getsockname())
            server.accept()[0].close()

    @pytest.mark.network
    def test_x5_the_mark_opens_the_door(self) -> None:
        assert type(socket.socket.connect).__name__ == "method_descriptor"  # Python's own, not ours


# Runs a prediction while every connection, look-up of a name and datagram is noted. Audit hooks hear of all
# that Python's own socket module does, whoever calls it.
LISTENS = """
import json, sys
calls = []
names = {"connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname"}
watched = {"socket." + name for name in names}
sys.addaudithook(lambda event, arguments: calls.append(event) if event in watched else None)
from sparseg.cli.main import run
code = run(sys.argv[1:])
print(json.dumps([code, calls]))
"""


@pytest.mark.slow
def test_x5_a_prediction_calls_nobody(tmp_path: Path, figure: Figure) -> None:
    """In a process of its own, with all that is imported in it."""
    write_image(tmp_path / "a.nii.gz", make_phantom((12, 10, 9))[0])
    arguments = [tmp_path / "a.nii.gz", "--model", save_tiny_model(tmp_path / "m"), "--out", tmp_path / "out"]
    command = [sys.executable, "-c", LISTENS, "predict", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, called = json.loads(done.stdout.splitlines()[-1])
    figure("X5", "calls over the network in a prediction", len(called), limit=0)
    assert (code, called) == (0, [])


FORBIDDEN = {
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
    "pickle": r"pickle\.loads?\(|Unpickler\(|allow_pickle=True",
    "unsafe torch.load": r"weights_only\s*=\s*False",
    "extractall": r"\.extractall\(",
    "shell": r"shell\s*=\s*True|os\.system\(|os\.popen\(",
    "yaml": r"yaml\.(?:load|unsafe_load|full_load)\(",
    "loose weights": r"strict\s*=\s*False(?=.*load_state_dict)|load_state_dict\([^)]*strict\s*=\s*False",
    "temporary names": r"tempfile\.mktemp\(",
}


@pytest.mark.hazard("X6", "kinds of dangerous call found")
@pytest.mark.parametrize("name", FORBIDDEN)
def test_x6_no_dangerous_call(name: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(FORBIDDEN[name], line)
    ]
    assert found == []


def test_x6_the_grep_finds_what_it_looks_for() -> None:
    samples = {
        "eval": "x = eval(text)",
        "exec": "exec(text)",
        "pickle": "pickle.load(stream)",
        "unsafe torch.load": "torch.load(f, weights_only=False)",
        "extractall": "archive.extractall(path)",
        "shell": "run(x, shell=True)",
        "yaml": "yaml.load(text)",
        "loose weights": "net.load_state_dict(state, strict=False)",
        "temporary names": "tempfile.mktemp()",
    }
    assert samples.keys() == FORBIDDEN.keys()
    assert [name for name, line in samples.items() if not re.search(FORBIDDEN[name], line)] == []


def calls(file: Path) -> list[ast.Call]:
    return [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]


@pytest.mark.hazard("X6", "kinds of dangerous call found")
def test_x6_every_torch_load_says_weights_only() -> None:
    found = []
    for file in FILES:
        for call in calls(file):
            if ast.unparse(call.func) == "torch.load":
                found.append({k.arg: ast.unparse(k.value) for k in call.keywords}.get("weights_only"))
    assert found
    assert set(found) == {"True"}


@pytest.mark.hazard("X6", "kinds of dangerous call found")
def test_x6_the_library_prints_nothing() -> None:
    printing = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file in FILES
        if file.relative_to(ROOT).parts[0] not in ("cli", "__main__.py")
        for call in calls(file)
        if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]
    assert printing == []


NETWORK = ("urllib", "requests", "httpx", "socket", "http")
MAY_IMPORT = {
    "datasets/sample.py": "fetches the sample data that the user asks for",
    "datasets/sample_archive.py": "likewise",
    "predict/claims.py": "the name of this machine",
    "viewer/serve.py": "listens on loopback",
}


@pytest.mark.hazard("X6", "kinds of dangerous call found")
def test_x6_no_broad_except_and_no_network_client_outside_the_sample() -> None:
    broad, clients = [], []
    for file in FILES:
        name = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            ):
                broad.append(f"{name}:{node.lineno}")
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                if any(n.split(".")[0] in NETWORK and n != "urllib.parse" for n in names):
                    clients.append(name)
    assert broad == []
    assert set(clients) <= set(MAY_IMPORT)
    claims = (ROOT / "predict/claims.py").read_text(encoding="utf-8")
    assert set(re.findall(r"socket\.(\w+)", claims)) == {"gethostname"}

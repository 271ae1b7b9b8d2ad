"""Weights from files: whatever the kind, the same tensors; never code, never half a network without a word."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_vl.errors import UserError
from lightning_vl.nn.positions import NoPositions, Positions
from lightning_vl.weights import (
    Report,
    Weights,
    build_network,
    fuse,
    load_checked,
    newest,
    part,
    read_weights,
    translate,
)


def weights() -> Weights:
    torch.manual_seed(0)
    return {"weight": torch.randn(3, 2), "bias": torch.randn(3)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_kind_of_file_gives_the_same_tensors(tmp_path: Path) -> None:
    """A kind that is read another way; the optimiser's or a metric's tensors taken for the network's."""
    own = weights()
    save_file(own, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in own.items()})
    for suffix in (".pt", ".pth", ".bin"):
        torch.save(own, tmp_path / f"a{suffix}")
    torch.save(own, tmp_path / "old.bin", _use_new_zipfile_serialization=False)  # as files of 2018 are
    state = {f"net.{name}": tensor for name, tensor in own.items()} | {"evaluation.val.total": torch.zeros(1)}
    torch.save({"state_dict": state, "optimizer_states": []}, tmp_path / "a.ckpt")
    for file in tmp_path.iterdir():
        assert same(read_weights(str(file)), own), file.name


class Code:
    """Makes a folder when it is unpickled, if anything lets it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_not_opened(tmp_path: Path) -> None:
    """Weights come from strangers."""
    ran = tmp_path / "ran"
    torch.save({**weights(), "more": Code(ran)}, tmp_path / "a.bin")
    np.savez(tmp_path / "a.npz", more=np.array([Code(ran)], dtype=object))
    with pytest.raises(UserError, match="could run code, and was not opened"):
        read_weights(str(tmp_path / "a.bin"))
    with pytest.raises(UserError, match="is broken or no file of weights"):
        read_weights(str(tmp_path / "a.npz"))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.bin"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_broken_files_are_named(name: str, damage: str, tmp_path: Path) -> None:
    """A download that was cut off, or a web page saved in its place: two lines, no traceback."""
    file = tmp_path / name
    if name == "a.safetensors":
        save_file(weights(), file)
    elif name == "a.npz":
        np.savez(file, **{key: tensor.numpy() for key, tensor in weights().items()})
    else:
        torch.save(weights(), file)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"<html>Not found</html>\n"}[damage])
    with pytest.raises(UserError, match=name) as error:
        read_weights(str(file))
    assert len(str(error.value).splitlines()) == 2


def test_files_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    """Nothing there, a folder, other content."""
    torch.save({"epoch": 1}, tmp_path / "epoch.ckpt")
    torch.save({"state_dict": {"loss.scale": torch.ones(1)}}, tmp_path / "loss.ckpt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    expected = {"gone.pt": "does not exist", ".": "is a folder"}
    expected |= dict.fromkeys(("epoch.ckpt", "loss.ckpt", "tensor.pt"), "holds no state dict")
    for name, what in expected.items():
        with pytest.raises(UserError, match=what):
            read_weights(str(tmp_path / name))


def test_names_are_translated_by_module() -> None:
    """A block's number lost or changed, a parameter by itself, or a name let through that is in no table."""
    names = {"layers.*.fc": "blocks.*.mlp", "bias": "head.bias", "norm": "last"}
    assert translate("layers.11.fc.weight", names, "it") == "blocks.11.mlp.weight"
    assert translate("bias", names, "it") == "head.bias"
    assert translate("norm.bias", names, "it") == "last.bias"
    for key in ("layers.1.gate.weight", "norm.running_mean", "layers.fc.weight"):
        with pytest.raises(UserError, match=f"{key} is no weight of it"):
            translate(key, names, "it")


def test_query_key_and_value_are_parted_as_they_were_fused() -> None:
    """Two of them swapped, or one that is missing and not missed."""
    thirds = {f"a.{third}.weight": torch.full((2, 2), float(i)) for i, third in enumerate(("query", "key", "value"))}
    fused = fuse({**thirds, "b": torch.ones(3)})
    assert fused.keys() == {"a.query_key_value.weight", "b"}
    assert fused["a.query_key_value.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert same(part(fused), {**thirds, "b": torch.ones(3)})
    del thirds["a.key.weight"]
    with pytest.raises(UserError, match=r"lack a\.key\.weight"):
        fuse(thirds)


def test_a_file_has_only_the_kinds_built_that_are_asked_for(tmp_path: Path) -> None:
    """Any class that it names would be called otherwise."""
    path, module = "best.ckpt", "lightning_vl.nn.positions"
    assert isinstance(build_network({"class_path": f"{module}.NoPositions"}, (Positions,), path), NoPositions)
    for name in (f"{module}.NoPositions", "lightning_vl.errors.UserError", "os.mkdir", "torch.nn.Linear"):
        with pytest.raises(UserError, match=f"{path} names {name}, which is no network here"):
            build_network({"class_path": name, "init_args": {}}, (nn.Linear,), path)
    for spec in ({"class_path": f"{module}.Gone"}, {"class_path": f"{module}.NoPositions", "init_args": {"rows": 1}}):
        with pytest.raises(UserError, match="use the version that wrote it"):
            build_network(spec, (Positions,), path)


def test_loading_misses_nothing() -> None:
    """A tensor too many, too few or of another shape; the network then stays as it was."""
    net = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    own = weights()
    wrong = {
        "has more, which this Linear does not have": own | {"more": torch.ones(1)},
        "lacks bias, which this Linear has": {"weight": own["weight"]},
        r"has weight of \(2, 3\), this Linear of \(3, 2\)": own | {"weight": own["weight"].T},
    }
    for what, given in wrong.items():
        with pytest.raises(UserError, match=f"a.pt {what}"):
            load_checked(net, given, "a.pt")
    assert same(net.state_dict(), before)
    load_checked(net, own, "a.pt")
    assert same(net.state_dict(), own)
    with torch.device("meta"):
        load_checked(nn.Linear(2, 3), own, "a.pt")


@dataclass
class Longer(Report):
    """A paper's own."""

    resized: list[str] = field(default_factory=list)


def test_a_report_can_be_read() -> None:
    """A line for each tensor of 24 blocks, or what was left out hidden among them."""
    report = Longer("a.pt", fresh=["head.bias"], dropped=["old.bias"], resized=["positions"])
    report.loaded = [f"blocks.{i}.mlp.{name}" for i in range(3) for name in ("hidden.weight", "hidden.bias")]
    assert str(report).splitlines() == [
        "started from a.pt",
        "  loaded   blocks.*.mlp (6)",
        "  resized  positions",
        "  fresh    head.bias",
        "  dropped  old.bias",
    ]


def test_the_newest_of_a_pattern(tmp_path: Path) -> None:
    """Breaks if an evaluation takes an older run than the last one, or a pattern of nothing is a traceback."""
    for age, name in enumerate(["b", "c", "a"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert newest(f"{tmp_path}/*") == f"{tmp_path}/b"
    assert newest("plain/file.pt") == "plain/file.pt"
    with pytest.raises(UserError, match=r"no file is called .*\.ckpt"):
        newest(f"{tmp_path}/*.ckpt")

"""Class folders that are all to test on."""

from pathlib import Path

import pytest
from PIL import Image

from lightning_vl.data.datasets.evaluation_folder import EvaluationFolder
from lightning_vl.errors import CorruptSample, UserError


def test_every_image_is_to_test_on(tmp_path: Path) -> None:
    """Breaks if images are left out, given another class's label, or handed out for training."""
    for name, shade in (("owl", 10), ("cat", 20), ("cat", 21)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), (shade, 0, 0)).save(tmp_path / name / f"{shade}.png")
    (tmp_path / "owl" / "readme.txt").write_text("no image")
    (tmp_path / "owl" / "broken.png").write_bytes(b"no image")
    source = EvaluationFolder(str(tmp_path), classes=2)
    assert source.class_names == ["cat", "owl"]
    assert list(source.images("test")) == [
        ("cat/20.png", 0),
        ("cat/21.png", 0),
        ("owl/10.png", 1),
        ("owl/broken.png", 1),
    ]
    assert [int(source.read("test", index)[0, 0, 0]) for index in range(3)] == [20, 21, 10]
    with pytest.raises(CorruptSample, match=r"owl/broken\.png"):
        source.read("test", 3)
    with pytest.raises(UserError, match="no train split"):
        source.images("train")


def test_mistakes_are_said(tmp_path: Path) -> None:
    """Breaks if a wrong folder, or another number of classes, gives no images instead of a reason."""
    with pytest.raises(UserError, match="there is no folder"):
        _ = EvaluationFolder(str(tmp_path / "none")).class_names
    with pytest.raises(UserError, match="holds no class folders"):
        _ = EvaluationFolder(str(tmp_path)).class_names
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="hold no images"):
        EvaluationFolder(str(tmp_path)).images("test")
    with pytest.raises(UserError, match="the experiment says 2"):
        EvaluationFolder(str(tmp_path), classes=2).images("test")

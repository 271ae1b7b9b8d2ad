"""Images and texts in one space, outside of any run: what zero-shot classification, retrieval and search are made of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lightning_vl.data.image_augmentation import centre_square
from lightning_vl.data.tokenizer import TextTokenizer
from lightning_vl.nn.packing import pack
from lightning_vl.papers.clip.model import CLIP
from lightning_vl.terminal import say


class DualEncoder:
    """A trained pair of towers with what its inputs need. Everything is computed in evaluation mode, without gradients.

    Args:
        net: the towers; left as they are.
        tokenizer: the one they were trained with.
        context_length: most tokens of a text.
        batch_size: images or texts of one forward pass.
    """

    def __init__(self, net: CLIP, tokenizer: TextTokenizer, context_length: int, batch_size: int = 128) -> None:
        self.net = net
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.batch_size = batch_size

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.net.logit_scale.device

    @property
    def image_size(self) -> int:
        """Height and width of the image, px."""
        return self.net.image.image_size

    @property
    def scale(self) -> float:
        """What cosines are multiplied by."""
        with self._evaluating():
            return float(self.net.scale)

    def pixels(self, image: np.ndarray) -> Tensor:
        """uint8 (h, w, 3) of any size to uint8 (3, image_size, image_size)."""
        return centre_square(torch.from_numpy(image).permute(2, 0, 1), self.image_size)

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Images: uint8 (n, 3, image_size, image_size).

        Returns:
            Embeddings (n, d) of length one, and the features before the projection (n, w); float32, on the CPU.
        """

        embeddings, features = [], []
        with self._evaluating():
            for batch in pixels.split(self.batch_size):  # type: ignore[no-untyped-call]
                found = self.net.image.features(batch.to(self.device).float() / 255)
                features.append(found.float().cpu())
                embeddings.append(torch.nn.functional.normalize(self.net.image.projection(found).float(), dim=-1).cpu())
        return torch.cat(embeddings), torch.cat(features)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (n, d) of length one; float32, on the CPU. What is too long is cut, and a line says how much."""
        fitted = [self.tokenizer.fitted(text, self.context_length) for text in texts]
        sequences = [tokens for tokens, _ in fitted]
        if too_long := [text for text, (_, cut) in zip(texts, fitted, strict=True) if cut]:
            say(
                f"warning: {len(too_long):,} of {len(texts):,} texts have more than {self.context_length} tokens and were "
                f"cut, the first: {too_long[0][:80]}"
            )
        embeddings = []
        with self._evaluating():
            for start in range(0, len(sequences), self.batch_size):
                batch = sequences[start : start + self.batch_size]
                token_ids = torch.tensor([token for tokens in batch for token in tokens], device=self.device)
                packing = pack(torch.tensor([len(tokens) for tokens in batch], device=self.device))
                embeddings.append(self.net.embed_texts(token_ids, packing).cpu())
        return torch.cat(embeddings)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.net.training
        self.net.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.net.train(training)

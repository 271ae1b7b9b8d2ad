"""CLIP's batches: which caption an image gets, how captions are packed, what is refused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_vl.data.captions import CaptionDocuments, CaptionedImage, CaptionSource, StreamedCaptions, stated
from lightning_vl.data.image_augmentation import RandomSquareCrop, centre_square, resize_shorter_side
from lightning_vl.data.source import Split
from lightning_vl.data.tokenizer import TrainedVocabulary, WordPiece
from lightning_vl.errors import CorruptSample, UserError
from lightning_vl.papers.clip.data import CaptionData, CaptionTransform, EvaluationCaptions, TrainingCaptions, collate

WORDS = ["red", "green", "blue", "circle", "square"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


class Pictures(CaptionSource):
    """Six images of 20 x 12 px whose pixels are their number, with one to three captions; the last has none."""

    def images(self, split: Split) -> Sequence[CaptionedImage]:
        captions = [tuple(WORDS[: 1 + number % 3]) for number in range(5)] + [()]
        return [CaptionedImage(f"{split}/{number}", texts) for number, texts in enumerate(captions)]

    def read(self, split: Split, index: int) -> np.ndarray:
        return np.full((12, 20, 3), index, dtype=np.uint8)


class Streamed(Pictures, StreamedCaptions):
    """The same, read in order."""

    @property
    def length(self) -> int:
        return 6

    def read_in_order(self, seed: int, epoch: int, index: int) -> tuple[CaptionedImage, np.ndarray]:
        return self.images("train")[index], self.read("train", index)


def transform() -> CaptionTransform:
    return CaptionTransform(WordPiece(PIECES), 8, 12, RandomSquareCrop())


def test_captions_of_an_image_are_drawn_alike() -> None:
    """Breaks if an image is always trained with its first caption."""
    dataset = TrainingCaptions(Pictures(), transform())
    drawn = Counter(dataset.sample(2, np.random.default_rng(seed))["tokens"][0][1] for seed in range(600))
    assert set(drawn) == {5, 6, 7}
    assert min(drawn.values()) > 150  # 200 each, four standard deviations below


def test_a_sample_is_a_function_of_its_generator() -> None:
    """Breaks if crop or caption take randomness from elsewhere: a resumed run would see other samples."""
    dataset = TrainingCaptions(Pictures(), transform())
    one, two = (dataset.sample(2, np.random.default_rng(7)) for _ in range(2))
    assert one["tokens"] == two["tokens"]
    assert torch.equal(one["image"], two["image"])


def test_an_image_without_a_caption_is_a_corrupt_sample() -> None:
    """Breaks if training stops, or an empty text is trained on, where an image has no caption."""
    for dataset in (
        TrainingCaptions(Pictures(), transform()),
        EvaluationCaptions(Pictures(), "test", WordPiece(PIECES), 8, 12),
    ):
        with pytest.raises(CorruptSample, match="it has no caption"):
            dataset.sample(5, np.random.default_rng(0))


def test_evaluation_has_all_captions_of_each_image() -> None:
    """Breaks if a caption is set beside another image, or is left out."""
    dataset = EvaluationCaptions(Pictures(), "test", WordPiece(PIECES), 8, 12)
    batch = collate([dataset.sample(index, np.random.default_rng(0)) for index in (2, 0, 1)])
    assert batch["image_of"].tolist() == [0, 0, 0, 1, 2, 2]
    assert batch["text"] == ["red", "green", "blue", "red", "red", "green"]
    assert batch["token_ids"][batch["packing"].first + 1].tolist() == [5, 6, 7, 5, 5, 6]
    assert batch["token_ids"][batch["packing"].last].tolist() == [3] * 6
    assert batch["image"].shape == (3, 3, 12, 12)
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 0, 1]


def test_a_long_caption_keeps_its_end() -> None:
    """Breaks if the token that the text is read off at is cut away."""
    tokens = WordPiece(PIECES).sequence("red green blue circle square", 4)
    assert tokens == [2, 5, 6, 3]


def test_captions_that_are_too_long_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if captions are cut unsaid, or those that just fit count as cut."""
    tokenizer = WordPiece(PIECES)
    assert tokenizer.fitted("red green", 4) == ([2, 5, 6, 3], False)
    assert tokenizer.fitted("red green blue", 4) == ([2, 5, 6, 3], True)
    rng = np.random.default_rng(0)

    class Long(Pictures):
        def images(self, split: Split) -> Sequence[CaptionedImage]:
            return [CaptionedImage(f"{split}/{number}", ("red", "red green blue")) for number in range(6)]

    data = CaptionData(Long(), TrainedVocabulary(40), 12, RandomSquareCrop(), 6, context_length=4)
    data.tokenizer = tokenizer
    data.datasets = {"train": data.dataset("train"), "test": data.dataset("test")}
    for stage, said in (("train", "train: "), ("test", "test: 6 of 12 captions so far have more than 4 tokens")):
        data.trainer = SimpleNamespace(state=SimpleNamespace(stage=stage))  # type: ignore[assignment]
        for _ in range(2):
            batch = data.collate([data.datasets[data.split].sample(index, rng) for index in range(6)])
            assert "cut" not in data.on_before_batch_transfer(batch, 0)
        assert said in capsys.readouterr().err
    assert data.captions["test"] == [24, 12]
    assert data.captions["train"][0] == 12
    assert 0 < data.captions["train"][1] < 12


def test_a_crop_is_a_square_of_the_shorter_side() -> None:
    """Breaks if images are squeezed, or a part is taken that is smaller than the shorter side."""
    image = torch.arange(40, dtype=torch.uint8).expand(3, 24, 40).contiguous()  # columns rise from left to right
    firsts = set()
    for seed in range(60):
        crop = RandomSquareCrop()(image, 24, np.random.default_rng(seed))
        assert crop.shape == (3, 24, 24)
        assert torch.equal(crop[0, 0], torch.arange(int(crop[0, 0, 0]), int(crop[0, 0, 0]) + 24, dtype=torch.uint8))
        firsts.add(int(crop[0, 0, 0]))
    assert min(firsts) == 0
    assert max(firsts) == 16
    assert centre_square(image, 24)[0, 0, 0] == 8


def test_resizing_is_that_of_pil() -> None:
    """Breaks if bicubic is computed otherwise than where the released weights were trained: scores shift."""
    from PIL import Image
    from torchvision.transforms.v2 import CenterCrop, InterpolationMode, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    theirs = CenterCrop(16)(Resize(16, InterpolationMode.BICUBIC)(Image.fromarray(pixels)))
    ours = centre_square(torch.from_numpy(pixels).permute(2, 0, 1), 16)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.array(theirs))
    assert resize_shorter_side(torch.from_numpy(pixels).permute(2, 0, 1), 16).shape == (3, 16, 22)


def test_captions_make_documents() -> None:
    """Breaks if a vocabulary is trained on other captions than the training ones, or its cache outlives a change of them."""
    documents = CaptionDocuments(Pictures())
    assert [document.sentences for document in documents.documents("train")][:2] == [["red"], ["red", "green"]]

    class Others(Pictures):
        def captions(self, split: Split) -> Iterator[tuple[str, ...]]:
            yield from (("circle",) for _ in range(6))

    assert documents.fingerprint("train") != CaptionDocuments(Others()).fingerprint("train")


def test_empty_captions_are_none() -> None:
    """Breaks if white space counts as a caption."""
    assert stated(["", "  a \n dog ", "\t"]) == ("a dog",)


def test_another_vocabulary_is_refused() -> None:
    """Breaks if a checkpoint is tested with pieces that its text tower has not read."""
    data = CaptionData(Pictures(), TrainedVocabulary(40), 12, RandomSquareCrop(), 2)
    data.tokenizer = WordPiece(PIECES)
    kept = data.state_dict()["preprocessing"]
    data.accept(kept)
    data.tokenizer = WordPiece([*PIECES, "dog"])
    with pytest.raises(UserError, match="another vocabulary than this one of 11 pieces"):
        data.accept(kept)
    data.tokenizer, data.image_size = WordPiece(PIECES), 16
    with pytest.raises(UserError, match="image_size"):
        data.accept(kept)


def test_streamed_captions_are_read_in_order() -> None:
    """Breaks if a streamed source is asked for a list of its images."""
    data = CaptionData(Streamed(), TrainedVocabulary(40), 12, RandomSquareCrop(), 2)
    data.tokenizer = WordPiece(PIECES)
    dataset = data.dataset("train")
    assert len(dataset) == 6
    sample = dataset.sample_in_order(0, 0, 4, np.random.default_rng(0))  # type: ignore[union-attr]
    assert sample["id"] == "train/4"
    assert sample["image"][0, 0, 0] == 4


def test_a_context_too_short_is_refused() -> None:
    """Breaks if captions of nothing but start and end are trained on."""
    with pytest.raises(UserError, match="context_length is 2"):
        CaptionData(Pictures(), TrainedVocabulary(40), 12, RandomSquareCrop(), 2, context_length=2)

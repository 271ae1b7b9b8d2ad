import pytest
import torch
from torch import nn

from lightning_vl.nn.embeddings import PatchEmbedding, Stem, TubeletEmbedding, UniformFrameEmbedding, uniform_frames


def test_patches_equal_a_convolution() -> None:
    """Another order of channels, rows and columns inside a patch would make released filters meaningless."""
    embedding = PatchEmbedding(image_size=11, patch_size=4, dim=6)
    nn.init.normal_(embedding.bias)
    images = torch.randn(2, 3, 11, 11)
    expected = nn.functional.conv2d(images, embedding.weight, embedding.bias, stride=4)  # (b, d, 2, 2)
    torch.testing.assert_close(embedding(images), expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_tubelets_equal_a_convolution() -> None:
    """Order of time, rows and columns, in a tubelet and among them, and what is left over (VALID)."""
    embedding = TubeletEmbedding(frames=7, image_size=11, tubelet=(2, 4, 3), dim=6)
    nn.init.normal_(embedding.bias)
    video = torch.randn(2, 7, 3, 11, 11)
    convolved = nn.functional.conv3d(video.transpose(1, 2), embedding.weight, embedding.bias, stride=(2, 4, 3))
    assert embedding.grid == convolved.shape[2:] == (3, 2, 3)
    expected = convolved.flatten(3).permute(0, 2, 3, 1)  # (b, t, s, d)
    torch.testing.assert_close(embedding(video), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("sampled", "expected"),
    [
        (4, [6, 13, 19, 26]),
        (8, [4, 7, 11, 14, 18, 21, 25, 28]),
        (16, [2, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21, 23, 24, 26, 28, 30]),
        (32, list(range(32))),
    ],
)
def test_uniform_frames_of_the_papers_code(sampled: int, expected: list[int]) -> None:
    """Rounding half up, or taking the first frame, gives other frames than the released models saw."""
    assert uniform_frames(32, sampled) == expected


def test_uniform_frames_are_always_as_many_as_asked_for() -> None:
    """A step that does not divide the clip exactly can give one more by rounding."""
    for frames in range(1, 80):
        for sampled in range(1, frames + 1):
            chosen = uniform_frames(frames, sampled)
            assert len(set(chosen)) == sampled
            assert chosen == sorted(chosen)
            assert 0 <= chosen[0] <= chosen[-1] < frames


def test_uniform_frame_embedding_is_the_image_embedding_of_each_frame() -> None:
    """Frames and patches must not change places."""
    patches = PatchEmbedding(image_size=8, patch_size=4, dim=6)
    embedding = UniformFrameEmbedding(frames=9, image_size=8, sampled_frames=2, patch_size=4, dim=6)
    embedding.load_state_dict(patches.state_dict())
    video = torch.randn(2, 9, 3, 8, 8)
    expected = torch.stack([patches(video[:, frame]) for frame in (3, 6)], dim=1)
    assert embedding.grid == (2, 2, 2)
    torch.testing.assert_close(embedding(video), expected, atol=1e-6, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    """A grid without a token would train, on nothing."""
    with pytest.raises(ValueError, match="does not fit"):
        TubeletEmbedding(frames=1, image_size=8, tubelet=(2, 4, 4), dim=6)
    with pytest.raises(ValueError, match="does not fit"):
        PatchEmbedding(image_size=8, patch_size=16, dim=6)
    with pytest.raises(ValueError, match="cannot be taken from 4 frames"):
        UniformFrameEmbedding(frames=4, image_size=8, sampled_frames=5, patch_size=4, dim=6)


class Halves(Stem):
    """Means of 2 x 2 pixels, twice as channels."""

    channels, stride = 6, 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 2).repeat(1, 2, 1, 1)


def test_patches_of_a_stem_are_those_of_its_map() -> None:
    """The grid is the map's, and each token the projection of one place of it."""
    embedding = PatchEmbedding(image_size=8, patch_size=1, dim=5, stem=Halves())
    images = torch.randn(2, 3, 8, 8)
    expected = torch.nn.functional.conv2d(Halves()(images), embedding.weight, embedding.bias).flatten(2).mT
    assert embedding.grid == (4, 4)
    torch.testing.assert_close(embedding(images), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="does not fit into an image of 4"):
        PatchEmbedding(image_size=8, patch_size=5, dim=5, stem=Halves())

"""Sequences in one line: nothing is lost, mixed up or invented on the way to the padded form and back."""

import pytest
import torch

from lightning_vl.nn.packing import chunks, pack

LENGTHS = torch.tensor([3, 1, 4])


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)], ids=["ids", "vectors", "heads"])
@pytest.mark.parametrize("lengths", [[3, 1, 4], [4, 4], [1], [1, 1, 1]], ids=str)
def test_there_and_back(lengths: list[int], shape: tuple[int, ...]) -> None:
    """Breaks if a token is lost, doubled or put into another sequence."""
    packing = pack(torch.tensor(lengths))
    line = torch.randn(sum(lengths), *shape)
    padded = packing.pad(line)
    assert padded.shape == (len(lengths), max(lengths), *shape)
    for row, sequence in zip(padded, line.split(lengths), strict=True):
        assert torch.equal(row[: len(sequence)], sequence)
    assert torch.equal(packing.unpad(padded), line)


def test_padded_tensors_become_a_line() -> None:
    """Breaks if the mask is not that of the padded form, by which users with padded tensors pack them."""
    padded = torch.arange(12).view(3, 4)
    packing = pack(LENGTHS)
    assert packing.mask is not None
    assert packing.mask.tolist() == [[True, True, True, False], [True, False, False, False], [True] * 4]
    line = padded[packing.mask]
    assert line.tolist() == [0, 1, 2, 4, 8, 9, 10, 11]
    assert torch.equal(packing.unpad(padded), line)


def test_what_stands_in_the_padding_is_finite() -> None:
    """Breaks if padding is left as memory was found: 0 times NaN is NaN even where attention does not look."""
    line = torch.arange(8.0)
    padded = pack(LENGTHS).pad(line)
    assert padded[0, 3] == padded[1, 1] == line[0]


def test_first_last_and_positions() -> None:
    """Breaks if [CLS] is looked for in another sequence, the last token in the padding, or places do not start anew."""
    packing = pack(LENGTHS)
    assert packing.longest == 4
    assert packing.first.tolist() == [0, 3, 4]
    assert packing.last.tolist() == [2, 3, 7]
    assert packing.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_equal_lengths_need_no_mask() -> None:
    """Breaks if batches without padding pay for a mask, which keeps attention from its fastest kernel."""
    packing = pack(torch.tensor([3, 3]))
    assert packing.mask is None
    assert packing.first.tolist() == [0, 3]
    assert packing.last.tolist() == [2, 5]
    assert packing.positions.tolist() == [0, 1, 2, 0, 1, 2]
    line = torch.randn(6, 2)
    assert packing.pad(line).data_ptr() == line.data_ptr()


@pytest.mark.parametrize("lengths", [[], [2, 0, 1], [-1]], ids=str)
def test_empty_sequences_are_refused(lengths: list[int]) -> None:
    """Breaks if a sequence without a token passes: its softmax is over nothing, which is NaN."""
    with pytest.raises(ValueError, match="at least one token"):
        pack(torch.tensor(lengths))


def test_gradients_come_back_to_the_line() -> None:
    """Breaks if token 0 gets gradient from the padding that holds its value, or another token gets none."""
    packing = pack(LENGTHS)
    line = torch.randn(8, 2, requires_grad=True)
    packing.unpad(packing.pad(line)).sum().backward()
    assert torch.equal(line.grad, torch.ones(8, 2))


@pytest.mark.parametrize("lengths", [[3, 1, 4, 1, 5], [2, 2, 2]])
def test_chunks_hold_the_same_sequences(lengths: list[int]) -> None:
    """Breaks if a sequence is cut, lost or read twice where a line is embedded in parts."""
    line = torch.arange(sum(lengths))
    parts = chunks(line, pack(torch.tensor(lengths)), 2)
    assert torch.equal(torch.cat([tokens for tokens, _ in parts]), line)
    found = [len(row) for tokens, packing in parts for row in tokens.tensor_split((packing.first[1:]).tolist())]
    assert found == lengths
    assert [len(packing.first) for _, packing in parts] == [2] * (len(lengths) // 2) + [1] * (len(lengths) % 2)

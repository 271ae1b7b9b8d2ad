"""Peak rates: the right column of the right device, and nothing where nothing is known."""

import re

import pytest

from lightning_vl.peak_rates import TABLE, peak_rate


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", True, 989.4),
        ("NVIDIA H100 80GB HBM3", "32-true", True, 494.7),
        ("NVIDIA H100 80GB HBM3", "32-true", False, 66.9),
        ("NVIDIA H100 PCIe", "16-true", True, 756),
        ("NVIDIA A100-SXM4-80GB", "bf16-true", True, 312),
        ("NVIDIA A100 80GB PCIe", "16-mixed", True, 312),
        ("Tesla V100-SXM2-16GB", "16-mixed", True, 125),
        ("Tesla V100-SXM2-16GB", "32-true", True, 15.7),  # it has no TF32
        ("Tesla T4", "16-mixed", True, 65),
        ("TPU v5litepod", "bf16-true", True, 197),
    ],
)
def test_a_known_device_has_its_rate(device: str, precision: str, tf32: bool, teraflops: float) -> None:
    """Breaks if a device or a precision gets another's rate: utilisation would be off by that factor."""
    assert peak_rate(device, precision, tf32) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "32-true"),
        ("TPU ", "bf16-true"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16-mixed"),  # a seventh of one
        ("NVIDIA A10G", "bf16-mixed"),  # another one than the A10
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "16-mixed"),
        ("Tesla V100-SXM2-16GB", "bf16-mixed"),  # it has none
        ("NVIDIA H100 80GB HBM3", "64-true"),
        ("NVIDIA H100 80GB HBM3", "transformer-engine"),
    ],
)
def test_what_is_not_known_is_unknown(device: str, precision: str) -> None:
    """Breaks if a device that only sounds like one of the table, or a precision without a rate, gets a number."""
    assert peak_rate(device, precision, tf32=True) is None


def test_every_entry_has_a_source_and_plausible_rates() -> None:
    """Breaks if an entry comes without a source, or with the columns of one that counts sparsity or another unit."""
    for entry in TABLE:
        assert entry.source
        re.compile(entry.name)
        rates = [rate for rate in (entry.bf16, entry.fp16, entry.tf32, entry.fp32) if rate is not None]
        assert rates
        assert rates == sorted(rates, reverse=True), entry.name  # the fewer bits, the faster
        assert entry.tf32 is None or entry.fp16 is None or entry.fp16 / entry.tf32 == pytest.approx(2, rel=0.02)

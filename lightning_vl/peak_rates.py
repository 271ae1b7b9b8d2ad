"""What devices could do at best: the dense peak rates that their makers print, and nothing guessed.

Rates are of matrix products without structured sparsity, which doubles many printed numbers, and with sums in 32 bit, as
PyTorch makes them: the consumer cards do twice as many with sums in 16. A device is found by its whole name, so that a
slice of one (MIG), a laptop's or a sibling (A10G for A10) is unknown rather than wrong.
"""

import re
from typing import NamedTuple

TERA = 1e12


class PeakRates(NamedTuple):
    """What one device does in a second, in 1e12 floating-point operations; None where it is not printed or not there.

    Attributes:
        name: pattern of the whole name that the driver gives, or of the TPU's kind.
        bf16: of brain floats.
        fp16: of half precision.
        tf32: of 32-bit numbers whose factors are rounded to 19 bits.
        fp32: of 32-bit numbers outside of the matrix units.
        source: where it is printed.
    """

    name: str
    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float | None
    source: str


HOPPER = "NVIDIA H100 Tensor Core GPU Architecture (white paper, 2022), table of H100's performance"
H200 = "NVIDIA H200 Tensor Core GPU datasheet, SXM; printed with sparsity, half of it dense"
A100 = "NVIDIA A100 Tensor Core GPU datasheet; PCIe and SXM alike"
VOLTA = "NVIDIA V100 Tensor Core GPU datasheet"
GA102 = "NVIDIA Ampere GA102 GPU Architecture (white paper), rates with FP32 accumulate"
ADA = "NVIDIA Ada GPU Architecture (white paper), rates with FP32 accumulate"
CLOUD_TPU = "Google Cloud TPU documentation, system architecture, a chip"

TABLE = (
    PeakRates(r"NVIDIA H100 80GB HBM3", 989.4, 989.4, 494.7, 66.9, HOPPER),  # SXM5
    PeakRates(r"NVIDIA H100 PCIe", 756, 756, 378, 51.2, HOPPER),
    PeakRates(r"NVIDIA H200", 989.5, 989.5, 494.5, 67, H200),
    PeakRates(r"(NVIDIA )?A100-(SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe", 312, 312, 156, 19.5, A100),
    PeakRates(r"(NVIDIA )?A30", 165, 165, 82, 10.3, "NVIDIA A30 Tensor Core GPU datasheet"),
    PeakRates(r"(NVIDIA )?A40", 149.7, 149.7, 74.8, 37.4, "NVIDIA A40 datasheet"),
    PeakRates(r"(NVIDIA )?A10", 125, 125, 62.5, 31.2, "NVIDIA A10 Tensor Core GPU datasheet"),
    PeakRates(r"Tesla V100-SXM2-(16|32)GB", None, 125, None, 15.7, VOLTA),
    PeakRates(r"Tesla V100-PCIE-(16|32)GB", None, 112, None, 14, VOLTA),
    PeakRates(r"Tesla V100S-PCIE-32GB", None, 130, None, 16.4, VOLTA),
    PeakRates(r"(NVIDIA )?(Tesla )?T4", None, 65, None, 8.1, "NVIDIA T4 Tensor Core GPU datasheet"),
    PeakRates(
        r"NVIDIA L4", 121, 121, 60, 30.3, "NVIDIA L4 Tensor Core GPU datasheet; printed with sparsity, half of it"
    ),
    PeakRates(r"NVIDIA L40", 181, 181, 90.5, 90.5, "NVIDIA L40 GPU datasheet"),
    PeakRates(r"NVIDIA L40S", 362, 362, 183, 91.6, "NVIDIA L40S GPU datasheet"),
    PeakRates(r"(NVIDIA )?GeForce RTX 3090", 71, 71, 35.6, 35.6, GA102),
    PeakRates(r"NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6, ADA),
    PeakRates(r"TPU v4", 275, None, None, None, CLOUD_TPU),
    PeakRates(r"TPU v5litepod", 197, None, None, None, CLOUD_TPU),  # v5e
    PeakRates(r"TPU v5p", 459, None, None, None, CLOUD_TPU),
    PeakRates(r"TPU v6e", 918, None, None, None, CLOUD_TPU),
)


def peak_rate(device: str, precision: str, tf32: bool) -> float | None:
    """The rate that a training could reach at best on one device, in floating-point operations a second.

    Args:
        device: name of a GPU as the driver gives it, or "TPU " and the kind ("TPU v5litepod").
        precision: Lightning's name: "32-true", "bf16-mixed", ...
        tf32: whether products of 32-bit numbers may be made in TF32, where the device has it.

    Returns:
        None where it is not known: other devices, processors, other precisions.
    """
    rates = next((rates for rates in TABLE if re.fullmatch(rates.name, device)), None)
    if rates is None:
        return None
    match precision:
        case "bf16-mixed" | "bf16-true":
            rate = rates.bf16
        case "16-mixed" | "16-true":
            rate = rates.fp16
        case "32-true":
            rate = rates.tf32 if tf32 and rates.tf32 is not None else rates.fp32
        case _:
            rate = None
    return None if rate is None else rate * TERA

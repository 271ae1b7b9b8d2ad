"""What a training run costs: operations, days of a core and money, from the experiment's file alone.

Operations are counted as ViT's Table 6 counts them: a multiply-add is two, and a training step three forwards. How long
a core takes for them is an assumption of the sweep file (``core_days``: its peak and the share of it that training
reaches), not a measurement, and so is the price.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_vl.errors import UserError
from lightning_vl.report.data_scale import TRAINING
from lightning_vl.report.family import CoreDays, Sweep, value_at
from lightning_vl.report.results import read_yaml

FLOPS_OF_A_MAC = 2
SECONDS_OF_A_DAY = 86_400


@dataclass(frozen=True)
class TrainingCost:
    """What an experiment's file asks for.

    Attributes:
        images: steps x batch.
        gmacs: multiply-adds of a forward of one image, in 1e9.
        exaflops: operations of the training, in 1e18.
        core_days: at the assumed utilisation.
        dollars: at the assumed price.
        printed: core-days in the paper's table; None where it has none.
        agreeing: the utilisation at which ``core_days`` would be the printed ones.
    """

    images: int
    gmacs: float
    exaflops: float
    core_days: float
    dollars: float
    printed: float | None
    agreeing: float | None


def training_exaflops(gmacs: float, images: float) -> float:
    """Operations of training, in 1e18 (Table 6): 2 for a multiply-add, 3 for forward and both gradients.

    Args:
        gmacs: multiply-adds of a forward of one image, in 1e9.
        images: seen in training, epochs counted.
    """
    return FLOPS_OF_A_MAC * TRAINING * gmacs * images / 1e9


def core_days(exaflops: float, peak_tflops: float, utilisation: float) -> float:
    """Days of one core.

    Args:
        exaflops: operations, in 1e18.
        peak_tflops: of one core, in 1e12 a second.
        utilisation: share of the peak that training reaches.
    """
    return exaflops * 1e6 / (peak_tflops * utilisation * SECONDS_OF_A_DAY)


def training_costs(sweep: Sweep, price_per_core_hour: float | None = None) -> dict[str, TrainingCost]:
    """The training cost of every experiment of a sweep file that has ``core_days``; empty for others.

    Args:
        sweep: names the experiments and holds the assumptions and printed values.
        price_per_core_hour: in dollars; the sweep file's where None.

    Raises:
        UserError: an experiment has no number of steps or batch size, or its network cannot be built.
    """
    if sweep.core_days is None:
        return {}
    from lightning_vl.report.profile import profile

    gmacs = {row["experiment"]: float(row["gmacs"]) for row in profile(sweep.experiments, latency=False)}
    price = sweep.core_days.price_per_core_hour if price_per_core_hour is None else price_per_core_hour
    return {
        name: _cost(sweep, sweep.core_days, name, gmacs[name], _images(file), price)
        for name, file in zip(sweep.names, sweep.experiments, strict=True)
    }


def _cost(sweep: Sweep, assumed: CoreDays, name: str, gmacs: float, images: int, price: float) -> TrainingCost:
    exaflops = training_exaflops(gmacs, images)
    days = core_days(exaflops, assumed.peak_tflops, assumed.utilisation)
    row: Mapping[str, float] = sweep.paper.rows.get(name, {}) if sweep.paper else {}
    printed = row.get(assumed.printed) if assumed.printed else None
    return TrainingCost(
        images=images,
        gmacs=gmacs,
        exaflops=exaflops,
        core_days=days,
        dollars=days * 24 * price,
        printed=printed,
        agreeing=None if printed is None else core_days(exaflops, assumed.peak_tflops, 1.0) / printed,
    )


def _images(file: str) -> int:
    config = read_yaml(Path(file))
    counts = [value_at(config, key) for key in ("trainer.max_steps", "data.init_args.batch_size")]
    if not all(isinstance(count, int) and count > 0 for count in counts):
        raise UserError(
            f"{file} has no trainer.max_steps or no data.init_args.batch_size",
            "Give both in the file: training cost is counted from them",
        )
    return int(counts[0] * counts[1])


def notes(assumed: CoreDays, price_per_core_hour: float | None) -> Sequence[str]:
    """What the computed columns assume, one sentence a line."""
    price = (
        f"${assumed.price_per_core_hour:g} a core-hour ({assumed.price_source})"
        if price_per_core_hour is None
        else f"${price_per_core_hour:g} a core-hour, as given"
    )
    return (
        "Training cost is computed from the experiment files: 2 x 3 x MACs of a forward x steps x batch.",
        f"Assumed: {assumed.core} at {assumed.peak_tflops:g} TFLOP/s ({assumed.peak_source}), "
        f"{100 * assumed.utilisation:g} % of it used ({assumed.utilisation_source}); {price}.",
        "Agreeing: the share of the peak at which the computed core-days would be the printed ones. Price: core-days x 24 x "
        "that of a core-hour, for the computed core-days and for the printed ones.",
    )

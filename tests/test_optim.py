"""Learning-rate schedules at the steps where they can go wrong."""

import pytest

from lightning_vl.optim import WarmupConstant, WarmupCosine, WarmupLinear


@pytest.mark.parametrize("schedule", [WarmupCosine(10), WarmupLinear(10), WarmupConstant(10)])
def test_the_warm_up_rises_in_equal_steps_to_one(schedule: WarmupCosine | WarmupLinear | WarmupConstant) -> None:
    """Breaks if the first step has no learning rate, or the last of the warm-up not the whole one."""
    assert [schedule.factor(step, 100) for step in range(10)] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert schedule.factor(10, 100) == pytest.approx(1.0)


def test_linear_decay_is_a_line_from_the_end_of_the_warm_up() -> None:
    """Breaks if the decay starts at step 0, misses the last step, or goes on below its end."""
    schedule = WarmupLinear(10, end=0.01)
    assert schedule.factor(55, 100) == pytest.approx((1 + 0.01) / 2)
    assert schedule.factor(100, 100) == pytest.approx(0.01)
    assert schedule.factor(1000, 100) == pytest.approx(0.01)
    assert WarmupLinear(10).factor(100, 100) == 0


def test_constant_never_falls_and_does_not_ask_for_the_total() -> None:
    """Breaks if a run that ends by a criterion depends on its cap."""
    schedule = WarmupConstant(10)
    assert {schedule.factor(step, total) for step in (10, 99, 10_000) for total in (20, 1_000_000)} == {1.0}


def test_no_warm_up() -> None:
    """Breaks if a schedule without warm-up divides by nought or starts below one."""
    for schedule in (WarmupCosine(0), WarmupLinear(0), WarmupConstant(0)):
        assert schedule.factor(0, 100) == pytest.approx(1.0)

"""Learning-rate schedules at the steps where they can go wrong."""

import math

import pytest
import torch
from torch import nn

from lightning_vl.optim import (
    BertAdam,
    WarmupConstant,
    WarmupCosine,
    WarmupInverseSquareRoot,
    WarmupLinear,
    WarmupOverLinear,
    parameter_groups,
)


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


def test_the_warm_up_over_a_line_drops_onto_it_where_it_ends() -> None:
    """Breaks if the line begins after the warm-up, as in other schedules, or the first step has a learning rate."""
    schedule, total = WarmupOverLinear(10_000), 1_000_000
    assert schedule.factor(0, total) == 0
    assert schedule.factor(9_999, total) == pytest.approx(0.9999)
    assert schedule.factor(10_000, total) == pytest.approx(0.99)  # 1 % lower
    assert schedule.factor(500_000, total) == pytest.approx(0.5)
    assert schedule.factor(total, total) == 0


def test_the_inverse_square_root_has_the_rates_of_its_equation() -> None:
    """Breaks if it differs from d^-0.5 min(step^-0.5, step warmup^-1.5) with d = 512 and 4,000 steps of warm-up."""
    schedule, highest = WarmupInverseSquareRoot(4000), 512**-0.5 * 4000**-0.5
    assert highest == pytest.approx(6.99e-4, rel=1e-3)
    for step in (1, 100, 4000, 4001, 100_000):
        rate = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert highest * schedule.factor(step - 1, 100_000) == pytest.approx(rate)


def test_bert_adam_follows_its_equations() -> None:
    """Breaks if a bias correction comes in, eps stands within the root, or decay is scaled by the gradient's moments."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))
    groups = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = BertAdam(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)
    expected = [weight.detach().clone(), bias.detach().clone()]
    moments = [[torch.zeros_like(w), torch.zeros_like(w)] for w in expected]
    for step in range(5):
        for parameter, own, (m, v), decay in zip((weight, bias), expected, moments, (0.01, 0.0), strict=True):
            gradient = torch.full_like(own, 0.5 + step) * own.sign()
            parameter.grad = gradient.clone()
            m.copy_(0.9 * m + 0.1 * gradient)
            v.copy_(0.999 * v + 0.001 * gradient**2)
            own -= 0.1 * (m / (v.sqrt() + 1e-6) + decay * own)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected[0])
    torch.testing.assert_close(bias.detach(), expected[1])


def test_the_first_step_of_bert_adam_is_about_three_times_that_of_adam() -> None:
    """Breaks if the moments are corrected: (1 - b1) / sqrt(1 - b2) of a sign's step is 3.16 at first."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    BertAdam([weight], lr=1.0, weight_decay=0.0).step()
    assert weight.item() == pytest.approx(-0.1 / math.sqrt(0.001), rel=1e-4)


def test_bert_adam_goes_on_from_its_state() -> None:
    """Breaks if a resumed run has other moments."""
    runs = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        optimizer = BertAdam(parameter_groups(net), lr=0.01)
        for step in range(6):
            if interrupted and step == 3:
                state = optimizer.state_dict()
                optimizer = BertAdam(parameter_groups(net), lr=0.01)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            net(torch.full((2, 4), float(step))).square().sum().backward()
            optimizer.step()
        runs.append(net.weight.detach().clone())
    assert torch.equal(*runs)

"""Averages of parameters, by hand."""

import pytest
import torch
from torch import nn

from faceclip.training.ema import ParameterAverage


def average_of(value: float, decay: float = 0.9) -> tuple[nn.Parameter, ParameterAverage]:
    parameter = nn.Parameter(torch.tensor([value, -value]))
    return parameter, ParameterAverage({"p": parameter}, decay)


def move(parameter: nn.Parameter, value: float) -> None:
    with torch.no_grad():
        parameter.fill_(value)


def test_the_decay_grows_with_the_steps_up_to_its_limit() -> None:
    parameter, average = average_of(0.0)
    move(parameter, 11.0)
    average.update(1)  # decay (1 + 1) / (10 + 1): 9 / 11 of the way
    torch.testing.assert_close(average.state()["p"], torch.tensor([9.0, 9.0]))
    move(parameter, 19.0)
    average.update(1000)  # decay 0.9: a tenth of the way
    torch.testing.assert_close(average.state()["p"], torch.tensor([10.0, 10.0]))


def test_the_parameters_hold_their_averages_for_a_while() -> None:
    parameter, average = average_of(2.0)
    move(parameter, 5.0)
    with average.swapped_in():
        assert parameter.tolist() == [2.0, -2.0]
    assert parameter.tolist() == [5.0, 5.0]
    with pytest.raises(KeyError), average.swapped_in():
        raise KeyError
    assert parameter.tolist() == [5.0, 5.0]
    assert average.state()["p"].tolist() == [2.0, -2.0]


def test_averages_are_float32_and_are_taken_over() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    average = ParameterAverage({"p": parameter}, 0.5)
    saved = torch.tensor([0.123456789, 2.0])
    average.load({"p": saved})
    assert average.state()["p"].dtype == torch.float32 and torch.equal(average.state()["p"], saved)
    saved += 1
    assert average.state()["p"][1] == 2.0  # a copy


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_of_its_range_is_rejected(decay: float) -> None:
    with pytest.raises(ValueError, match=f"{decay}"):
        average_of(1.0, decay)
    average_of(1.0, 0.0)

import math

import torch

from halfstep.quant.rounding import soft


def test_the_first_logits_give_the_fraction() -> None:
    fraction = torch.linspace(0, 0.999, 1000)
    torch.testing.assert_close(
        soft.rectified_sigmoid(soft.logits_of(fraction)), fraction, atol=1e-6, rtol=0
    )


def test_large_logits_are_exactly_decided_and_have_no_gradient() -> None:
    logits = torch.tensor([-10.0, 10.0], requires_grad=True)
    rounding = soft.rectified_sigmoid(logits)
    assert rounding.tolist() == [0, 1]
    rounding.sum().backward()
    assert logits.grad is not None and not logits.grad.any()


def test_the_regularizer_is_zero_at_the_ends_and_largest_between() -> None:
    for beta in (2.0, 8.0, 20.0):
        assert soft.undecided(torch.tensor([0.0, 1.0]), beta) == 0
        assert soft.undecided(torch.tensor([0.5]), beta) == 1
    low = soft.undecided(torch.tensor([0.9]), 2.0)
    assert low < soft.undecided(torch.tensor([0.9]), 20.0)


def test_beta_is_annealed_from_20_to_2_behind_the_warm_up() -> None:
    assert soft.annealed_beta(0.1) == math.inf
    assert soft.annealed_beta(soft.WARM_UP) == 20
    assert soft.annealed_beta(1.0) == 2
    values = [soft.annealed_beta(i / 100) for i in range(20, 101)]
    assert values == sorted(values, reverse=True)

"""Averaged weights: the recurrence written out, swapping, state, what is averaged and what not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpn_d2.engine.ema import WeightAverage


def make() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    # The second half is frozen, its norm in eval mode.
    model[2].requires_grad_(False)
    model[3].requires_grad_(False).eval()
    return model


def steps(model: nn.Module, average: WeightAverage, count: int) -> list[dict]:
    seen = []
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn_like(parameter)
        model(torch.randn(8, 3))
        average.update()
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
    return seen


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_recurrence_with_warmed_up_decay(decay):
    model = make()
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    average = WeightAverage(model, decay)
    for t, weights in enumerate(steps(model, average, 20)):
        d = min(decay, (1 + t) / (10 + t))
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
            expected[name] = d * expected[name] + (1 - d) * weights[name]
    own = {k: v.clone() for k, v in model.state_dict().items()}
    with average.swapped():
        for name, value in model.state_dict().items():
            # Counters are the model's own; frozen parts never move.
            target = own[name] if name == "1.num_batches_tracked" else expected[name]
            assert torch.allclose(value, target, atol=1e-6), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name]), name


def test_frozen_parts_are_not_kept_twice():
    with WeightAverage(make(), 0.9).swapped() as _:
        pass
    average = WeightAverage(make(), 0.9)
    with average.swapped():
        names = set(average.state_dict()["trained_weights"])
    assert names == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_weights_come_back_after_an_error_and_nesting_swaps_once():
    model = make()
    average = WeightAverage(model, 0.5)
    steps(model, average, 3)
    own = model[0].weight.clone()
    with pytest.raises(KeyError), average.swapped():
        averaged = model[0].weight.clone()
        with average.swapped():
            assert torch.equal(model[0].weight, averaged)
        assert not torch.equal(averaged, own)
        raise KeyError
    assert torch.equal(model[0].weight, own)


def test_state_goes_on_exactly(tmp_path):
    whole = make()
    average = WeightAverage(whole, 0.9)
    steps(whole, average, 5)
    with average.swapped():
        state = {"model": whole.state_dict(), "ema": average.state_dict()}
        torch.save(state, tmp_path / "x.pth")
    saved = torch.load(tmp_path / "x.pth", weights_only=True)
    resumed = make()
    resumed.load_state_dict(saved["model"])
    again = WeightAverage(resumed, 0.9)
    again.load_state_dict(saved["ema"])
    assert again.updates == 5
    for model, kept in ((whole, average), (resumed, again)):
        torch.manual_seed(7)
        steps(model, kept, 3)
    for inside in (False, True):
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (name, inside)
        average._exchange()
        again._exchange()


def test_state_of_other_parts_is_refused():
    model = make()
    average = WeightAverage(model, 0.9)
    with average.swapped():
        state = average.state_dict()
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"MODEL\.TRAIN_PARTS"):
        WeightAverage(model, 0.9).load_state_dict(state)
    with pytest.raises(RuntimeError, match="swapped"):
        average.state_dict()

"""Steps of examples.papers.dhp_softmax as CUDA graphs, on a GPU: they learn what eager steps learn."""

from dataclasses import replace

import pytest
import torch

from test_dhp_training import FAST, Learner, learn, side_by_side, small, task, training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "SI"},
        {"method": "Online EWC", "dhp": True, "bounded": True},
        {"method": "MAS", "heads": "own"},
        {"momentum": 0.9, "dhp": True},
        {"optimizer": "Adam", "lr": 0.01},
    ],
)
def test_captured_steps_learn_as_eager_ones(monkeypatch, changes):
    """190 samples in batches of 8: two whole blocks, of which the first is never captured, and a part of one."""
    settings = replace(FAST, strength=1.0, epochs=3, **changes)
    benchmark = small()
    benchmark.train = [task(190, t, seed=t) for t in range(3)]
    networks, found = [], []
    monkeypatch.setattr(training, "Learner", lambda *rest: networks.append(Learner(*rest)) or networks[-1])
    for blocks in (training.BLOCK, 10**6):  # of the second none is ever whole
        monkeypatch.setattr(training, "BLOCK", blocks)
        found += side_by_side([learn(benchmark, settings, 0, "cuda")], "cuda")
    captured, eager = (network.network.state_dict() for network in networks)
    for name, tensor in eager.items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-3, atol=1e-4)
    assert len(found) == 2

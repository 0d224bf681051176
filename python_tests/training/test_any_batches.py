"""What `train` takes: batches of any kind and number, longer trainings, wrapped models and tied weights."""

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear
from trainings import network, training

idist = pytest.importorskip("ignite.distributed")
Events = training.engine.Events

X, LABELS = random((50, 1, 6, 6), seed=3), torch.arange(50) % 3


class Stream(torch.utils.data.IterableDataset):
    """Samples without a number of them."""

    def __iter__(self):
        yield from zip(X, LABELS, strict=True)


def learnt(batches, **options):
    """The weights after a training that begins with the same ones."""
    model = network()
    training.train(model, batches, **{"lr": 0.1, "epochs": 2} | options)
    return [parameter.detach() for parameter in model.parameters()]


PAIRS = list(zip(X.split(20), LABELS.split(20), strict=True))
KINDS = {
    "triples": [(x, labels, torch.zeros(len(x))) for x, labels in PAIRS],
    "dicts": [{"image": x, "label": labels} for x, labels in PAIRS],
    "other names": [{"targets": labels, "pixel_values": x} for x, labels in PAIRS],
    "a stream": torch.utils.data.DataLoader(Stream(), batch_size=20),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["together", "greedy"])
def test_batches_of_any_kind_teach_as_pairs_do(kind, order):
    want, got = learnt(PAIRS, order=order), learnt(KINDS[kind], order=order)
    assert all(map(torch.equal, got, want)) and not torch.equal(want[0], network()[0].weight)


def test_a_dict_without_labels_is_x():
    engine = training.hebbian_trainer(model := network()[:1], lr=0.1)
    engine.run([{"x": x} for x, _ in PAIRS], max_epochs=1)
    assert not torch.equal(model[0].weight, network()[0].weight)


REFUSED = [
    (
        lambda: [{"input_ids": X, "mask": X, "labels": LABELS}],
        "each batch must be a dict with one entry for x and at most one for labels, label, labels, target, targets, y, "
        "got the keys input_ids, mask, labels",
    ),
    (
        lambda: [{"x": X, "y": LABELS, "labels": LABELS}],
        "each batch must be a dict with one entry for x and at most one for labels, label, labels, target, targets, y, "
        "got the keys x, y, labels",
    ),
    (lambda: ["x"], "each batch must be a tensor x, (x, labels, ...) or a dict of them, got str"),
    (lambda: [()], "each batch must be a tensor x, (x, labels, ...) or a dict of them, got no part"),
    (list, "batches must hold at least one, got none"),
    (lambda: iter(PAIRS), "batches must be iterable anew in each epoch, got a list_iterator, which is not"),
    (lambda: (pair for pair in PAIRS), "batches must be iterable anew in each epoch, got a generator, which is not"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_batch_is_refused_in_one_sentence(make, message):
    model = network()
    with pytest.raises(ValueError) as error:
        training.train(model, make(), lr=0.1, epochs=2)
    assert str(error.value) == f"hebbkern.training: {message}"
    assert all(map(torch.equal, model.parameters(), network().parameters()))


def test_a_training_on_a_stream_resumes(tmp_path):
    """After whole epochs: the number of batches is known after the first."""

    def interrupt(engine):
        if engine.state.iteration == 7:
            raise KeyboardInterrupt

    loader = KINDS["a stream"]
    whole = learnt(loader, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        learnt(loader, epochs=4, folder=tmp_path, handlers=[(Events.ITERATION_STARTED, interrupt)])
    assert all(map(torch.equal, learnt(loader, epochs=4, folder=tmp_path, resume=True), whole))
    assert training.last_checkpoint(tmp_path).name == "checkpoint_12.safetensors"
    with pytest.raises(ValueError, match="save_every must be None for batches that cannot seek or have no length"):
        learnt(loader, folder=tmp_path / "other", save_every=1)


@pytest.mark.parametrize("decay", ["constant", "linear"])
def test_a_finished_training_goes_on_to_more_epochs(tmp_path, decay):
    """Bit for bit that of four epochs at a constant rate; otherwise the later epochs have the rates of four."""
    rates = []
    longer = learnt(PAIRS, epochs=4, decay=decay)
    learnt(PAIRS, epochs=2, decay=decay, folder=tmp_path)
    note = (Events.EPOCH_STARTED, lambda engine: rates.append(engine.state.lr))
    got = learnt(PAIRS, epochs=4, decay=decay, folder=tmp_path, resume=True, handlers=[note])
    assert all(map(torch.equal, got, longer)) is (decay == "constant")
    assert rates == ([0.1, 0.1] if decay == "constant" else [0.05, 0.025])
    with pytest.raises(
        ValueError, match=r"must keep stages of checkpoint_12.safetensors, .* got \[\[None, False, 3\]\]"
    ):
        learnt(PAIRS, epochs=3, decay=decay, folder=tmp_path, resume=True)


def test_a_greedy_training_goes_on_with_its_last_layer_only(tmp_path):
    options = {"order": "greedy", "decay": "constant"}
    longer = learnt(PAIRS, epochs={"*": 1, "4": 3}, **options)
    learnt(PAIRS, epochs=1, folder=tmp_path, **options)
    assert all(
        map(torch.equal, learnt(PAIRS, epochs={"*": 1, "4": 3}, folder=tmp_path, resume=True, **options), longer)
    )
    with pytest.raises(ValueError, match="must keep stages of"):
        learnt(PAIRS, epochs={"*": 4, "0": 2}, folder=tmp_path, resume=True, **options)


def with_a_head():
    torch.manual_seed(0)
    layer, norm = HebbianLinear(36, 8, rule=hk.WTA()), nn.BatchNorm1d(8, affine=False)
    return nn.Sequential(nn.Flatten(), layer, norm, nn.Linear(8, 3))


def with_a_compiled_part(model):
    model[1] = torch.compile(model[1], backend="eager")
    return model


DDP = nn.parallel.DistributedDataParallel
WRAPPERS = {
    "plain": lambda model: model,
    "ddp": DDP,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "ddp of compiled": lambda model: DDP(torch.compile(model, backend="eager")),
    "part": with_a_compiled_part,
}


@pytest.fixture
def alone(monkeypatch):
    """A group of this process alone, as DistributedDataParallel needs one."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    idist.finalize()  # ignite has found the group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_checkpoints_of_wrapped_models_have_plain_names(wrap, tmp_path, alone):
    """And a training that began with one model goes on with the other."""
    torch.compiler.reset()

    def run(model, epochs, **options):
        optimizer = torch.optim.Adam(model.named_parameters(), lr=0.01)
        options |= {"supervised_from": "3", "optimizer": optimizer, "decay": "constant"}
        training.train(model, PAIRS, lr=0.1, epochs=epochs, folder=tmp_path, **options)
        return list(model.parameters())

    run(WRAPPERS[wrap](with_a_head()), 1)
    state = training.checkpoint.load(training.last_checkpoint(tmp_path))
    assert list(state["model"]) == list(with_a_head().state_dict())
    assert state["model"]._metadata["2"] == {"version": 2}
    assert state["optimizer"]["param_groups"][0]["param_names"] == [
        name for name, _ in with_a_head().named_parameters()
    ]
    with_a_head().load_state_dict(state["model"])
    run(with_a_head(), 2, resume=True)
    got = run(WRAPPERS[wrap](with_a_head()), 3, resume=True)
    training.train(
        want := with_a_head(),
        PAIRS,
        lr=0.1,
        epochs=3,
        decay="constant",
        supervised_from="3",
        optimizer=torch.optim.Adam(want.parameters(), lr=0.01),
    )
    for own, other in zip(got, want.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_a_weight_that_two_layers_share_is_one_after_a_resume(tmp_path):
    def tied():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), HebbianLinear(36, 36, rule=hk.WTA()), HebbianLinear(36, 36, rule=hk.WTA()))
        model[2].weight = model[1].weight
        return model

    whole, part, resumed = tied(), tied(), tied()
    training.train(whole, PAIRS, lr=0.1, epochs=4, decay="constant")
    training.train(part, PAIRS, lr=0.1, epochs=2, decay="constant", folder=tmp_path)
    part[1].frozen[0] = True
    training.train(resumed, PAIRS, lr=0.1, epochs=4, decay="constant", folder=tmp_path, resume=True)
    assert resumed[1].weight is resumed[2].weight and torch.equal(resumed[1].weight, whole[1].weight)
    loaded = tied()
    loaded.load_state_dict(training.checkpoint.load(training.last_checkpoint(tmp_path))["model"])
    assert loaded[1].weight is loaded[2].weight and torch.equal(loaded[2].weight, whole[2].weight)
    hk.nn.revert(loaded)
    assert loaded[1].weight is loaded[2].weight

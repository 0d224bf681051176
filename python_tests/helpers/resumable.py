"""A training of some seconds that test_resume.py starts in another process, kills and resumes."""

import os
import random
import signal

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it, which costs a second in each process
from torch import nn

import hebbkern as hk
from hebbkern import files, training

EPOCHS, SAMPLES, BATCH_SIZE = 6, 403, 10
ITERATIONS = EPOCHS * 41  # the last batch of an epoch has 3 samples


class Noise(nn.Module):
    """Adds random numbers of Python's generator and of NumPy's."""

    def forward(self, x):
        return x + 0.1 * random.random() + 0.1 * np.random.standard_normal()


def network():
    """Local learning, running statistics, random numbers of each kind, and a part trained by backpropagation."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    return nn.Sequential(
        hk.nn.HebbianConv2d(1, 6, 3, rule=hk.WTA(patches="centred")),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        Noise(),
        hk.nn.HebbianLinear(216, 40, rule=hk.KrotovHopfield()),
        nn.Linear(40, 5),
    )


def run(folder, order="together", after_step=None):
    """Trains in `folder`, from its last checkpoint if there is one; `after_step` is called after each iteration."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (SAMPLES, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 5, (SAMPLES,), generator=generator)
    model = network()
    optimizer = torch.optim.SGD(model[7].parameters(), lr=0.05, momentum=0.9)
    handlers = [] if after_step is None else [(training.engine.Events.ITERATION_COMPLETED, after_step)]
    training.train(
        model,
        training.Batches(images, labels, batch_size=BATCH_SIZE, seed=3, partial=True),
        lr=0.05,
        epochs=EPOCHS if order == "together" else EPOCHS // 3,
        order=order,
        supervised_from="7",
        optimizer=optimizer,
        folder=folder,
        resume=True,
        save_every=1,
        handlers=handlers,
    )


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def run_until(place, iteration, folder):
    """Runs until it kills itself at a `place` while it writes the first checkpoint after so many iterations."""
    at = 0

    def record(engine):
        nonlocal at
        at = engine.state.iteration

    def before(module, name, what=None):
        original = getattr(module, name)

        def call(*arguments, **options):
            if at >= iteration and (what is None or what in str(arguments[0])):
                die()
            return original(*arguments, **options)

        setattr(module, name, call)

    def half(file, data):
        if at >= iteration:
            file.file.write(data[: len(data) // 2])
            file.file.flush()
            die()
        return file.file.write(data)

    if place == "half written":
        _Files.write = half
        files.open = _Files
    elif place == "before the folder's sync":
        before(files, "_sync")
    elif place == "before the old one goes":
        before(files.Path, "unlink", ".safetensors")
    else:
        before(os, {"before the sync": "fsync", "before the name": "replace"}[place])
    run(folder, after_step=record)


class _Files:
    """open() whose files call this class for `write`."""

    def __init__(self, *arguments):
        self.file = open(*arguments)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

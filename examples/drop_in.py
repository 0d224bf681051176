"""A ResNet whose first layers learn locally, without labels, and the rest by backprop: python examples/drop_in.py"""

import argparse

import torch
import torchvision

import hebbkern as hk
from hebbkern import datasets, training

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", help="a data set of torchvision or a .npz file (default: gratings that are made up)")
parser.add_argument("--epochs", type=int, default=3, help="of each Hebbian layer, and of the rest")
parser.add_argument("--images", type=int, default=1000, help="how many to train and to test with at most")
arguments = parser.parse_args()
torch.manual_seed(0)

if arguments.data:
    data = datasets.load(arguments.data)
    sets = (data.x_train, data.y_train), (data.x_test, data.y_test)
    sets = [(x[: arguments.images].expand(-1, 3, -1, -1).contiguous(), y[: arguments.images]) for x, y in sets]
else:  # gratings of ten directions under noise
    place = torch.linspace(-8, 8, 32)
    y = torch.arange(2 * arguments.images) % 10
    turn, phase = (y * torch.pi / 10)[:, None, None], torch.rand(len(y), 1, 1) * 6.3
    x = torch.sin(turn.cos() * place + turn.sin() * place[:, None] + phase)[:, None] + torch.randn(len(y), 3, 32, 32)
    sets = list(zip(x.split(arguments.images), y.split(arguments.images), strict=True))

model = torchvision.models.resnet18(num_classes=10)
rules = {"conv1": hk.WTA(patches="standardised"), "layer1.*": hk.WTA(patches="standardised")}
later = [weight for name, weight in model.named_parameters() if name.startswith(("layer2", "layer3", "layer4", "fc"))]
batches = training.Batches(*sets[0], batch_size=50)
options = {"rules": rules, "supervised_from": "layer2", "optimizer": torch.optim.Adam(later, lr=1e-3)}
training.train(model, batches, lr=0.1, epochs=arguments.epochs, order="greedy", progress=True, **options)

with torch.no_grad():
    right = model.eval()(sets[1][0]).argmax(1) == sets[1][1]
print(f"test accuracy {100 * right.double().mean():.1f} %")

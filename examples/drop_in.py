"""Layers of an existing model learn by a local rule: a ResNet whose first layers never need a gradient.

python examples/drop_in.py
"""

import torch
import torchvision

import hebbkern as hk
from hebbkern.evaluation import linear_readout

torch.manual_seed(0)


def gratings(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns noisy gratings [count, 3, 32, 32] of ten directions, and the directions as labels."""
    labels, axis = torch.arange(count) % 10, torch.linspace(-8, 8, 32)
    angle, phase = (labels * torch.pi / 10)[:, None, None], 6.3 * torch.rand(count, 1, 1)
    waves = torch.sin(angle.cos() * axis + angle.sin() * axis[:, None] + phase)
    return waves[:, None] + torch.randn(count, 3, 32, 32), labels


x, labels = gratings(500)
x_test, test_labels = gratings(200)
model = torchvision.models.resnet18(num_classes=10).eval()


@torch.no_grad()
def accuracy() -> float:
    """Returns the test accuracy of a linear classifier on what the first layers respond."""
    first = torch.nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
    train, test = (torch.nn.functional.adaptive_avg_pool2d(first(images), 2).flatten(1) for images in (x, x_test))
    return linear_readout(train, labels, test, test_labels, decays=(1e-4,)).test


random = accuracy()
rule = hk.WTA(patches="standardised")
hk.nn.convert(model, {"conv1": rule, "layer1.*": rule})  # in place; the forward pass and the state dict stay the same

# Inside `learning` each converted layer learns from its input whenever the model runs; the others stay as they are.
with torch.no_grad(), hk.learning(model, lr=0.1):
    for _ in range(2):
        for images in x.split(50):
            model(images)

print(f"test accuracy: first layers learnt {100 * accuracy():.1f} %, random {100 * random:.1f} %")

"""The rules in float32 torch as their users write them: five formulations of the sums, each rule once on top of them.

    eager      patches [P, N], the matrix of who learns what (one-hot for winners) in a matmul: PyTorch-Hebbian
    reorder    patches [B, N, L] as unfold gives them, x and w summed apart, the batch inside the matmul: FastHebb
    broadcast  x[:, None, :] - w, patches x neurons x inputs, weighted and summed: HebbianPCA
    swap       the map of who learns what is the filter of a convolution over the transposed batch, stride and
               dilation swapped: SoftHebb, BioPyTorch
    gradient   the same sum, asked of torch as the weight gradient of the layer's own convolution

Written by us from the papers' formulas. A linear layer has `eager` (there also FastHebb's order) and `broadcast` only.
"""

import torch
import torch.nn.functional as F


class Eager:
    """What every formulation offers; axis 1 of the responses runs over the neurons in all of them."""

    def __init__(self, kernel=(), stride=1, padding=0, dilation=1):
        self.kernel, self.geometry = tuple(kernel), {"stride": stride, "padding": padding, "dilation": dilation}

    def lay_out(self, w):
        """The weights in the shape that this formulation works on, a copy."""
        return w.flatten(1).clone(memory_format=torch.contiguous_format)

    def see(self, x):
        """What is made of the inputs, once a step."""
        return F.unfold(x, self.kernel, **self.geometry).transpose(1, 2).flatten(0, 1) if self.kernel else x

    def respond(self, seen, w):
        return seen @ w.T

    def sum(self, seen, g, w):
        """Σ g x over the patches, like w."""
        return g.T @ seen

    def total(self, seen, g, w, decay):
        """Σ g (x - decay w); decay is a number or has the shape of g."""
        return self.sum(seen, g, w) - column(over_patches(g * decay), w) * w

    def unexplained(self, seen, y, w):
        """Σ y_j (x - Σ_{i ≤ j} y_i w_i)"""
        rows = y.transpose(0, 1).flatten(1)
        return self.sum(seen, y, w) - ((rows @ rows.T).tril() @ w.flatten(1)).view_as(w)


class Reorder(Eager):
    def see(self, x):
        return F.unfold(x, self.kernel, **self.geometry)

    def respond(self, seen, w):
        return w @ seen

    def sum(self, seen, g, w):
        return torch.addbmm(torch.zeros_like(w), g, seen.transpose(1, 2))


class Broadcast(Eager):
    """The whole tensor would be tens of GB: it is cut into chunks of patches that stay in cache, faster besides."""

    CHUNK = 8 << 20  # bytes; the fastest among 1, 8 and 64 MiB

    def __init__(self, *geometry, compiled=False, **named):
        super().__init__(*geometry, **named)
        self.moved, self.left_over = moved, left_over
        if compiled:  # one chunk: a loop over them would be unrolled
            self.moved, self.left_over = (torch.compile(chunk, dynamic=False) for chunk in (moved, left_over))

    def chunks(self, w, *tensors):
        size = 1 << max(0, (self.CHUNK // (w.numel() * w.element_size())).bit_length() - 1)  # divides most numbers
        return zip(*(tensor.split(size) for tensor in tensors), strict=True)

    def total(self, seen, g, w, decay):
        decay = decay if isinstance(decay, torch.Tensor) else torch.full_like(g, decay)
        return sum(self.moved(x, r, d, w) for x, r, d in self.chunks(w, seen, g, decay))

    def unexplained(self, seen, y, w):
        return sum(self.left_over(x, r, w) for x, r in self.chunks(w, seen, y))


def moved(x, g, decay, w):
    return (g[:, :, None] * (x[:, None, :] - decay[:, :, None] * w)).sum(0)


def left_over(x, y, w):
    explained = (y[:, :, None] * w).cumsum(1)
    return (y[:, :, None] * (x[:, None, :] - explained)).sum(0)


class Gradient(Eager):
    def lay_out(self, w):
        return w.clone(memory_format=torch.channels_last)

    def see(self, x):
        return x.contiguous(memory_format=torch.channels_last)

    def respond(self, seen, w):
        return F.conv2d(seen, w, **self.geometry)

    def sum(self, seen, g, w):
        return torch.nn.grad.conv2d_weight(seen, w.shape, g, **self.geometry)


class Swap(Gradient):
    def sum(self, seen, g, w):
        swapped = {"stride": self.geometry["dilation"], "dilation": self.geometry["stride"]}
        batch, filters = (t.transpose(0, 1).contiguous(memory_format=torch.channels_last) for t in (seen, g))
        full = F.conv2d(batch, filters, padding=self.geometry["padding"], **swapped)
        return full[:, :, : w.shape[2], : w.shape[3]].transpose(0, 1)


def over_patches(total):
    """[K] of [P, K], [B, K, L] or [B, K, Ho, Wo]"""
    return total.sum([axis for axis in range(total.dim()) if axis != 1])


def column(values, w):
    return values.view(-1, *[1] * (w.dim() - 1))


def one_hot(responses):
    return torch.zeros_like(responses).scatter_(1, responses.argmax(1, keepdim=True), 1)


def krotov_hopfield(form, w, x, lr, p=2.0, k=2, delta=0.4):
    seen = form.see(x)
    s = form.respond(seen, w.sign() * w.abs() ** (p - 1))
    ranking = s.topk(k, dim=1).indices
    g = torch.zeros_like(s).scatter_(1, ranking[:, :1], 1).scatter_(1, ranking[:, -1:], -delta)
    step = form.total(seen, g, w, s)
    w += lr * step / step.abs().max().clamp(min=1e-30)


def wta(form, w, x, lr):
    """HWTA. The length of the patch is left out of the cosine: it cannot change the winner."""
    seen = form.see(x)
    g = one_hot(form.respond(seen, w / column(w.flatten(1).norm(dim=1), w)))
    w += lr * form.total(seen, g, w, 1) / column(over_patches(g).clamp(min=1), w)


def teacher(form, w, x, lr, labels):
    g = x.new_zeros(len(x), len(w)).scatter_(1, labels[:, None], 1)
    w += lr * form.total(form.see(x), g, w, 1) / column(over_patches(g).clamp(min=1), w)


def hebbcl(form, w, x, lr, threshold):
    """Neurons nearer than threshold to a sample are frozen: they win, but do not learn. Then rows by their maximum."""
    frozen = match(x, w) < threshold
    g = one_hot(form.respond(x, w)).masked_fill_(frozen, 0)
    count = over_patches(g)[:, None]
    new = w + lr * form.total(x, g, w, 1) / count.clamp(min=1)
    w.copy_(torch.where(count > 0, new / new.abs().amax(1, keepdim=True), w))


def match(x, w):
    """Each neuron's smallest |w - x|² / |x|₁."""
    return (torch.cdist(w, x).square() / x.abs().sum(1)).min(1).values


def sanger(form, w, x, lr):
    """HPCA: Sanger's rule on ReLU outputs."""
    seen = form.see(x)
    y = form.respond(seen, w).relu()
    w += lr / patches(y) * form.unexplained(seen, y, w)


def oja(form, w, x, lr):
    seen = form.see(x)
    y = form.respond(seen, w)
    w += lr / patches(y) * form.total(seen, y, w, y)


def hebb(form, w, x, lr):
    seen = form.see(x)
    y = form.respond(seen, w)
    w += lr / patches(y) * form.sum(seen, y, w)


def soft_wta(form, w, x, lr):
    seen = form.see(x)
    u = form.respond(seen, w)
    winner = u.argmax(1, keepdim=True)
    share = -u.softmax(1)
    r = share.scatter(1, winner, -share.gather(1, winner))
    rate = (w.flatten(1).norm(dim=1) - 1).abs().sqrt()
    w += lr / patches(u) * column(rate, w) * form.total(seen, r, w, u)


def patches(responses):
    return responses.numel() // responses.shape[1]


STEPS = {step.__name__: step for step in (krotov_hopfield, wta, teacher, hebbcl, sanger, oja, hebb, soft_wta)}
LINEAR = {"eager": Eager, "broadcast": Broadcast}
CONVOLUTION = {"eager": Eager, "reorder": Reorder, "broadcast": Broadcast, "swap": Swap, "gradient": Gradient}


def formulations(kernel):
    """name -> class of those that apply; kernel is () for a linear layer."""
    return CONVOLUTION if kernel else LINEAR


def formulated(formula, name, kernel=(), compiled=False):
    """``lay_out(w)`` and ``step(W, x, lr)``: one update of the laid out weights in place."""
    step, formulation = STEPS[formula], formulations(kernel)[name]
    form = formulation(kernel, compiled=True) if compiled and name == "broadcast" else formulation(kernel)
    if compiled and name != "broadcast":
        step = torch.compile(step, dynamic=False)
    return form.lay_out, lambda *inputs, **labels: step(form, *inputs, **labels)

"""Where the loops would make this process wait for a GPU, counted without one.

A tensor on the CPU stands for one on the device if it comes from the data, the zoo, the players or
from `sent`, and so does everything that is computed from it. Reading a value of such a tensor is
what makes a GPU finish its work first.
"""

import contextlib
import traceback
from dataclasses import fields
from pathlib import Path

import distill_cifar
import pytest
import torch
from distillation import augmentation, chunks, data, networks, training
from distillation.randomness import generator
from test_method import configure, game
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ncfd import _validation

ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
#: Operations whose result depends on values: a number, a truth, a size.
READING = {
    *(aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.is_nonzero, aten.item, aten.allclose),
}


def origin():
    """Where in this project an operation was asked for."""
    for frame, line in traceback.walk_stack(None):
        file = Path(frame.f_code.co_filename)
        # An environment inside the folder is not the project.
        ours = ROOT in file.parents and "site-packages" not in file.parts
        if ours and file != Path(__file__):
            return f"{file.relative_to(ROOT)}:{line}"
    return "a library"


class Waits(TorchDispatchMode):
    """Collects the operations that read from what stands for the device."""

    def __init__(self, on_device):
        super().__init__()
        self.found, self.sent = [], 0
        self.kept = []  # or an address would be used again
        self.marked = set()
        self.mark(on_device)

    def mark(self, tree):
        for x in tree_leaves(tree):
            if isinstance(x, torch.Tensor):
                self.kept.append(x)
                self.marked.add(x.untyped_storage().data_ptr())

    def marks(self, x):
        return isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() in self.marked

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(map(self.marks, tree_leaves((args, kwargs)))):
            packet = func.overloadpacket
            by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
                isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]
            )
            by_counts = packet is aten.repeat_interleave and func._overloadname == "Tensor"
            if packet in READING or by_mask or by_counts:
                where = origin()
                # The kernels' own looks at values are in branches for the CPU alone, but for where
                # rows lie in the closed form.
                if not where.startswith("ncfd/ops/") or "_kernel_blocks" in where:
                    self.found.append(f"{packet} in {where}")
            self.mark(result)
        else:
            self.kept.append(result)
        return result

    def made(self, x):
        self.mark(x)
        return x

    def send(self, numbers, _):
        self.sent += 1
        return self.made(numbers.clone())


@contextlib.contextmanager
def waits(monkeypatch, on_device):
    with monkeypatch.context() as patch, Waits(on_device) as found:
        for module in (augmentation, data, training):
            patch.setattr(module, "sent", found.send)
        # Labels are made on the device, from nothing that lies there.
        labels = chunks.Chunk.labels
        patch.setattr(chunks.Chunk, "labels", lambda *given: found.made(labels(*given)))
        # Lists are made past the dispatcher.
        to_list = torch.Tensor.tolist

        def read(x):
            if found.marks(x):
                found.found.append(f"tolist in {origin()}")
            return to_list(x)

        patch.setattr(torch.Tensor, "tolist", read)
        # So are copies, where everything is on the CPU; what they hold is no longer on the device.
        to_cpu = torch.Tensor.cpu

        def copied(x):
            if not found.marks(x):
                return to_cpu(x)
            found.found.append(f"cpu in {origin()}")
            return torch.tensor(to_list(x), dtype=x.dtype)

        patch.setattr(torch.Tensor, "cpu", copied)
        # As on a device: values are not looked at in order to check them.
        patch.setattr(_validation, "values_visible", lambda value: False)
        yield found


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ([], 0),
        (["--calibration", "1"], 0),
        (["--method", "dm"], 0),
        # The sizes of the groups, and where rows lie: for each of four scales.
        (["--method", "ncfm-exact"], 1 + 4),
    ],
)
def test_what_an_iteration_reads_from_the_device(options, reads, digits, monkeypatch):
    config = configure("--ipc", "4", *options)
    network, zoo, images, _ = game(config, digits)
    played = distill_cifar.Game(config, digits, network, zoo, images)
    played.iterate()
    parts = [getattr(digits, f.name) for f in fields(digits)]
    on_device = [parts, zoo.initial, zoo.trained, played.images, [*played.criterion.parameters()]]
    on_device += [*played.criterion.buffers()]
    with waits(monkeypatch, on_device) as found:
        played.iterate()
    assert played.images.untyped_storage().data_ptr() in found.marked
    assert len(found.found) == reads, found.found
    assert found.sent == 1  # the choice of real images; the augmentation's draw has its own test


def test_a_training_step_reads_nothing_from_the_device(digits, monkeypatch):
    network = networks.ConvNet(1, 16, 10, width=4, depth=2)
    weights = networks.stack([networks.initial_weights(network, generator(k)) for k in range(3)])
    images, labels = digits.train_images[:120], digits.train_labels[:120]
    parts = [getattr(digits, f.name) for f in fields(digits)]
    with waits(monkeypatch, [parts, images, labels, weights]) as found:
        training.train(
            network,
            weights,
            digits,
            images,
            labels,
            [generator("order", k) for k in range(3)],
            epochs=2,
            rate=1e-3,
            schedule=training.one_cycle,
            strategy=training.Strategy(),
            batch=40,
            cutmix=1.0,
            after_epoch=lambda *_: None,
        )
    assert found.found == []
    assert found.sent == 2 * (1 + 3)  # the order of an epoch, the mixing of a step


def test_what_waits_is_found(digits, monkeypatch):
    """The detector itself: everything here would make a GPU wait."""
    x = digits.train_images[:8].float()
    with waits(monkeypatch, [x]) as found:
        derived = x.mean((1, 2, 3)) + torch.zeros(8)
        derived.sum().item()
        bool((derived > 0).any())
        derived[derived > 0]
        torch.nonzero(derived)
        torch.bincount(derived.long())
        torch.arange(8).repeat_interleave(derived.long().clamp(0, 1))
    assert len(found.found) >= 6
    with waits(monkeypatch, [x]) as found:
        torch.zeros(8).sum().item()  # never on the device
        x[torch.tensor([1, 2])].sum()
    assert found.found == []

"""``SIGReg``: samples against a standard normal, as a module that draws its own directions."""

from __future__ import annotations

import torch
from torch import Tensor

from ncfd import _processes, _samples, sliced
from ncfd import _validation as check

__all__ = ["SIGReg"]


class SIGReg(_processes.InStep):
    r"""Pull embeddings towards a standard normal: sketched isotropic Gaussian regularisation.

    ``forward`` draws random directions, new ones at every call, and returns
    :func:`ncfd.functional.sliced_normality`. The term that keeps self-supervised embeddings from
    collapsing in LeJEPA, with the value and the gradient of the implementations in use, in a
    fraction of their time and memory.

    Against others, at the same directions:

    * ``lejepa.multivariate.SlicingUnivariateTest(EppsPulley(t_max, n_points), num_slices)``: the
      same value; ``n_points`` is ``num_nodes``.
    * ``lightly.loss.SIGReg(knots, t_max, num_vectors)``: the same value; ``knots`` is
      ``num_nodes``, ``num_vectors`` is ``num_slices``, and ``gather_distributed=True`` a
      ``process_group``.
    * All contain the factor N, take ``[0, t_max]`` doubled by symmetry, weigh by
      :math:`e^{-s^2/2}` without the :math:`1/\sqrt{2\pi}` of a density, and average over
      directions and leading dimensions.

    Args:
        num_slices: K, directions of a call, uniform on the sphere.
        num_nodes: nodes on ``[0, t_max]``, both ends included, at least 2.
        t_max: the largest node.
        process_group: processes whose parts make up the batch, as in
            :func:`ncfd.functional.sliced_normality`. All draw the same directions whatever their
            seeds: from a generator that is in step on all processes, seeded in the first
            ``forward`` from the first process's default generator. Build the module after
            ``init_process_group``: before it, ``torch.distributed.group.WORLD`` is None, which
            means no communication.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: an option out of range.

    Example:
        >>> regulariser = SIGReg(num_slices=64)
        >>> views = torch.randn(2, 128, 16, requires_grad=True)  # two views of 128 images
        >>> regulariser(views).backward()
        >>> views.grad.shape
        torch.Size([2, 128, 16])

    Source: Balestriero & LeCun, *LeJEPA: provable and scalable self-supervised learning without
    the heuristics*, 2025 (arXiv:2511.08544).
    """

    def __init__(
        self,
        num_slices: int = 1024,
        *,
        num_nodes: int = 17,
        t_max: float = 3.0,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(process_group)
        self.num_slices = check.check_count(num_slices, "num_slices")
        self.num_nodes, self.t_max = sliced.check_nodes(num_nodes, t_max)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Distance of ``x (*, N, D)`` from a standard normal along new directions.

        Args:
            x: samples ``(*, N, D)``, floating point; leading dimensions are averaged. A process's
                part of the batch may be empty.
            generator: source of the directions, on the device of ``x`` or on the CPU (which gives
                the same numbers on every device). Default: PyTorch's own, or with a
                ``process_group`` the one in step; one passed there has to be in step itself.

        Returns:
            A scalar ``>= 0``, differentiable in ``x``.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: a shape or device that does not fit.
        """
        x = check.check_samples(x, "x", part=self.process_group is not None)
        check.check_generator(generator, x.device)
        common = generator is None
        if generator is None and self.process_group is not None:
            generator = self._generator_in_step(x.device)
        dtype = _samples.compute_dtype(x)
        device = x.device if generator is None else generator.device
        shape = (x.shape[-1], self.num_slices)
        u = torch.randn(shape, generator=generator, dtype=dtype, device=device).to(x.device)
        # Of normal numbers no square is lost, and sums of columns take less time than their norms.
        u = u / u.square().sum(0).sqrt()
        return sliced.statistic(x, u, self.num_nodes, self.t_max, self.process_group, common=common)

    def extra_repr(self) -> str:
        """The options, for ``print``."""
        return f"{self.num_slices}, num_nodes={self.num_nodes}, t_max={self.t_max:g}"

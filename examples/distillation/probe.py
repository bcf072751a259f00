"""What each player has achieved by itself, looked at from outside."""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

import ncfd

from . import diagnosis, formation, matching, networks, processes
from .chunks import Chunk
from .data import Data, RealBatches
from .history import History
from .options import GAMES, Config
from .randomness import generator
from .zoo import Zoo

#: Real images of each class, at least, that the diagnosis looks at: fewer show no spread.
LOOKED_AT = 16


def probe_interval(config: Config) -> int:
    """Iterations from one look to the next: at least 30 looks in a run."""
    return max(1, min(100, config.iterations // 30))


class Probe:
    """Each player's own achievement, on held-out images and an extractor that stays the same.

    The loss of the game alone does not tell who moved it. So it is also measured with one player
    held at its start: ψ at its start shows the images approaching the real ones, the images at
    their start show ψ finding where the two differ.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        network: networks.ConvNet,
        zoo: Zoo,
        initial_images: Tensor,
        criterion: matching.Matching,
        parts: list[Chunk],
    ) -> None:
        self.config, self.data, self.network, self.parts = config, data, network, parts
        self.weights = zoo.blend(0, 0.5)
        self.synthetic = config.ipc * config.factor**2  # of each class
        self.real = []  # features and labels of each chunk
        for part in parts:
            held = [
                torch.nonzero(data.validation_labels == c).flatten()[: min(64, config.batch_real)]
                for c in range(part.first, part.last)
            ]
            chosen = torch.cat(held)
            features = self._features(data.normalise(data.validation_images[chosen]))
            self.real.append((features, data.validation_labels[chosen] - part.first))
        self.initial_images = initial_images
        # Features of many classes take much memory: then they are formed again at each look.
        self.start = None
        if len(parts) == 1:
            self.start = self._synthetic_features(initial_images[parts[0].rows])
        # |φ| is compared with the noise of a matching batch, so it is taken of one; ten classes
        # are enough to see it.
        batches = RealBatches(data, config.batch_real, generator(config.seed, "probe batch"))
        picks = batches.choose()
        self.smallest_batch = min(map(len, picks))
        features, self.batch_labels = [], batches.fetch(picks[:10])[1]
        for pick in picks[:10] if criterion.samplers else []:
            features.append(self._features(batches.fetch([pick])[0])[:, -criterion.dims[0] :])
        self.batch = F.normalize(torch.cat(features), dim=1) if features else None
        # Rows are looked at in the unit that the scales are in.
        self.unit = data.mean.new_ones(data.num_classes)
        if features and criterion.unit == "median":
            self.unit = matching.inverse_median_distance(
                self.batch, self.batch_labels, data.num_classes
            )
            self.batch = self.batch * self.unit[self.batch_labels, None]
        self.looked_at = (self.batch, self.batch_labels)
        if features and config.batch_real < LOOKED_AT:
            self.looked_at = self._looked_at()
        # ψ as it is now, before its first step.
        with torch.no_grad():
            self.first = copy.deepcopy(criterion)

    def _looked_at(self) -> tuple[Tensor, Tensor]:
        """Features and labels of LOOKED_AT real images of each class, or all it has."""
        stream = generator(self.config.seed, "probe batch")
        batches = RealBatches(self.data, LOOKED_AT, stream)
        images, labels = batches.fetch(batches.choose()[:10])
        width = self.batch.shape[1]
        rows = F.normalize(self._features(images)[:, -width:], dim=1)
        return rows * self.unit[labels, None], labels

    def _features(self, images: Tensor) -> Tensor:
        layers = self.config.layers
        features, _ = networks.run_in_chunks(self.network, self.weights, images, layers)
        return features

    def _synthetic_features(self, images: Tensor) -> Tensor:
        # Decoded piece by piece: there may be too many to decode at once.
        rho2 = self.config.factor**2
        pieces = images.split(max(1, networks.AT_ONCE[images.device.type] // rho2))
        decoded = (formation.decode(piece, self.config.factor) for piece in pieces)
        return torch.cat([self._features(self.data.normalise(piece)) for piece in decoded])

    def _losses(
        self, criterion: matching.Matching, k: int, x: Tensor, *, signal: bool = False
    ) -> Tensor:
        """Return the loss of each class of chunk k, or J, what ψ finds of signal."""
        # The same noise for every measurement: what differs is ψ and the images.
        kept = [sampler.generator for sampler in criterion.samplers]
        for sampler in criterion.samplers:
            sampler.generator = generator(self.config.seed, "probe", device=self.config.device)
        real, real_groups = self.real[k]
        with torch.no_grad():
            groups = self.parts[k].labels(self.synthetic, x.device)
            sides = matching.Sides(real, x, real_groups, groups, len(self.parts[k]))
            values = criterion.signal(sides) if signal else criterion.compare(sides)
        for sampler, own in zip(criterion.samplers, kept, strict=True):
            sampler.generator = own
        return values

    def measure(self, images: Tensor, criterion: matching.Matching) -> dict[str, float]:
        """Return the numbers of this moment by name. Of ψ: those of the last layer."""
        C = self.data.num_classes
        names = ["probe/images"]
        if self.config.method in GAMES:
            names += ["probe/both", "probe/sampler", "signal/now", "signal/start"]
        losses = {name: torch.zeros(C, device=images.device) for name in names}
        for k, part in enumerate(self.parts):
            now = self._synthetic_features(images[part.rows])
            losses["probe/images"][part.classes] = self._losses(self.first, k, now)
            if self.config.method in GAMES:
                losses["probe/both"][part.classes] = self._losses(criterion, k, now)
                start = self.start
                if start is None:
                    start = self._synthetic_features(self.initial_images[part.rows])
                losses["probe/sampler"][part.classes] = self._losses(criterion, k, start)
                for name, psi in (("signal/now", criterion), ("signal/start", self.first)):
                    losses[name][part.classes] = self._losses(psi, k, now, signal=True)
        processes.add_up(*losses.values())
        seen = {name: values.mean().item() for name, values in losses.items()}
        if self.batch is not None:
            sampler = criterion.samplers[0].sampler
            stream = generator(self.config.seed, "probe", device=self.config.device)
            with torch.no_grad():
                scales = sampler.scales(generator=stream)
                t = sampler(generator=stream)
                phi = ncfd.functional.characteristic_function(
                    self.batch,
                    t,
                    groups=self.batch_labels,
                    num_groups=min(10, self.data.num_classes),
                ).abs()
            levels = torch.tensor([0.1, 0.5, 0.9], device=phi.device)
            # `quantile` takes at most 16 million values.
            quantiles = torch.quantile(phi.flatten()[:10_000_000], levels).tolist()
            seen |= {
                "scale/lowest": scales.min().item(),
                "scale/mean": scales.mean().item(),
                "scale/highest": scales.max().item(),
                "scale/rms": scales.square().mean().sqrt().item(),
                "phi/quantile_10": quantiles[0],
                "phi/median": quantiles[1],
                "phi/quantile_90": quantiles[2],
            }
            if self.config.method in GAMES and self._bounded():
                seen["scale/at_bound"] = matching.share_at_bound(
                    criterion.samplers[0],
                    self.first.samplers[0],
                    self.config.seed,
                    self.config.max_ratio,
                )
        return seen

    def _bounded(self) -> bool:
        """Whether ψ keeps its scales within `--max-ratio` of their start."""
        return self.config.sampler != "direct" and not self.config.fixed_norm

    def course(
        self, images: Tensor, criterion: matching.Matching, history: History
    ) -> diagnosis.Course | None:
        """Where ψ has gone from the first look to the images at the end; None without ψ."""
        if self.config.method not in GAMES:
            return None
        now = self.measure(images, criterion)
        first = {name: history.series[name][1][0] for name in ("scale/rms", "signal/now")}
        return diagnosis.Course(
            scale=(first["scale/rms"], now["scale/rms"]),
            signal=(first["signal/now"], now["signal/now"]),
            signal_of_start=now["signal/start"],
            at_bound=now.get("scale/at_bound"),
            max_ratio=self.config.max_ratio,
            adversary=self.config.adversary,
        )

    def diagnose(
        self, images: Tensor, criterion: matching.Matching, course: diagnosis.Course | None
    ) -> diagnosis.Diagnosis | None:
        """Look at up to ten classes of the first chunk, by the frequencies of the last layer."""
        if self.batch is None:
            return None
        part = self.parts[0]
        features = self._synthetic_features(images[part.rows])[:, -criterion.dims[0] :]
        labels = part.labels(self.synthetic, images.device) + part.first
        with torch.no_grad():
            stream = generator(self.config.seed, "probe", device=self.config.device)
            t = criterion.samplers[0].sampler(generator=stream)
        return diagnosis.diagnose(
            self.looked_at,
            (F.normalize(features, dim=1) * self.unit[labels, None], labels),
            t,
            self.data.class_names[: min(10, part.last)],
            clipped=(diagnosis.clipped(self.initial_images), diagnosis.clipped(images)),
            course=course,
        )

    def floors(self) -> dict[str, float]:
        """Return the |φ| that mere noise reaches, for the two sample sizes."""
        real, synthetic = self.smallest_batch, self.synthetic
        return {
            f"noise of {real} real images, 1/√N": matching.noise_floor(real),
            f"noise of {synthetic} synthetic images, 1/√M": matching.noise_floor(synthetic),
        }

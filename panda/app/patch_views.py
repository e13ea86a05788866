"""Draw validation patches during training: the same patches every time, and the most telling ones of the epoch.

The selection depends only on the seed and on the pixel counts of the epoch. A selected patch passes the network once
more, so that an epoch stores only a few numbers per patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from panda.app.dashboard import find_dashboard
from panda.data.loaders import Draw
from panda.data.patchset import PatchSet
from panda.inference.panel_patches import PanelRow
from panda.models.partial_labels import merge_target
from panda.models.probabilities import compute_cancer_classes, merge_cancer_classes
from panda.report.panels import draw_panels
from panda.tasks.segmentation import THRESHOLD

KINDS = {
    "true positive": "most cancer found",
    "false positive": "most false alarm",
    "true negative": "no cancer labelled, none called",
    "false negative": "most cancer missed",
    "best": "highest Dice",
    "worst": "lowest Dice",
}


def count_pixels(prob: Tensor, mask: Tensor) -> Tensor:
    """Count the pixels of each patch by outcome at `THRESHOLD`.

    Args:
        prob: Probabilities, (N, 1, h, w).
        mask: Labels, (N, 1, h, w), see `panda.models.partial_labels`; ignored pixels are not counted.

    Returns:
        (N, 3) int32: true positives, false positives, false negatives.
    """
    mask = merge_target(mask)
    called, cancer = (prob >= THRESHOLD) & (mask >= 0), mask > 0.5
    parts = (called & cancer, called & ~cancer, ~called & cancer)
    return torch.stack([part.flatten(1).sum(1, dtype=torch.int32) for part in parts], dim=1)


def merge_devices(shares: Sequence[NDArray[np.integer]]) -> NDArray[np.integer]:
    """Merge the counts of all devices in the order of the patches. Each of n devices has every n-th patch.

    Args:
        shares: Counts of each device, (n, 3). The first devices may have one patch more.
    """
    whole = np.empty((sum(map(len, shares)), *shares[0].shape[1:]), shares[0].dtype)
    for device, share in enumerate(shares):
        whole[device :: len(shares)] = share
    return whole


def select_fixed_patches(has_cancer: NDArray[np.bool_], rank: NDArray[np.integer], count: int) -> list[int]:
    """Select the patches that are drawn every time: half of them with cancer if there are enough, rounded up.

    Args:
        has_cancer: Whether a patch has cancer, (N,).
        rank: Position of each patch in a random order, (N,).
        count: Number of patches.
    """
    order = np.argsort(rank, kind="stable")
    cancer, others = order[has_cancer[order]], order[~has_cancer[order]]
    wanted = min(max(-(-count // 2), count - len(others)), len(cancer))
    return [*cancer[:wanted].tolist(), *others[: count - wanted].tolist()]


def select_telling_patches(counts: NDArray[np.integer], rank: NDArray[np.integer]) -> dict[str, int]:
    """Select a patch of the epoch for each of `KINDS` that occurs, and no patch twice.

    Args:
        counts: Pixel counts, (N, 3), see `count_pixels`.
        rank: Position of each patch in a random order, which breaks ties, (N,).
    """
    found, called, missed = counts.astype(np.int64).T
    cancer = found + missed > 0
    dice = 2 * found / np.maximum(2 * found + called + missed, 1)
    quiet = ~cancer & (called == 0)
    scores = {
        "true positive": np.where(found > 0, found, -np.inf),
        "false positive": np.where(called > 0, called, -np.inf),
        "true negative": np.where(quiet, 0.0, -np.inf),
        "false negative": np.where(missed > 0, missed, -np.inf),
        "best": np.where(cancer, dice, -np.inf),
        "worst": np.where(cancer, -dice, -np.inf),
    }
    chosen: dict[str, int] = {}
    # best and worst are selected first, because many patches fit the other kinds
    for kind in ("best", "worst", *KINDS):
        order = np.lexsort((rank, -scores[kind]))
        left = (int(i) for i in order if np.isfinite(scores[kind][i]) and int(i) not in chosen.values())
        if kind not in chosen and (item := next(left, None)) is not None:
            chosen[kind] = item
    return {kind: chosen[kind] for kind in KINDS if kind in chosen}


class PatchViews(Callback):
    """Draws `views/epoch_NNN_fixed.png` and `…_telling.png` every few epochs and after the last, and logs them.

    With several devices, the first one draws from the counts of all. The patches are in the order of their loader;
    `fixed` of them are drawn every time.
    """

    def __init__(
        self,
        patches: PatchSet,
        um_per_px: Mapping[str, float | None],
        folder: Path,
        *,
        every: int,
        fixed: int,
        seed: int,
    ) -> None:
        self.patches = patches
        self.um_per_px = um_per_px
        self.folder = folder
        self.every = every
        self.rank = np.random.default_rng(seed).permutation(len(patches))
        self.fixed = select_fixed_patches(patches.rows.fractions[:, 1] > 0, self.rank, fixed)
        self._counts: list[Tensor] = []
        self._epoch = self._drawn = -1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the counts of the previous epoch."""
        self._counts.clear()

    def on_validation_batch_end(  # noqa: PLR0917 (as Lightning calls it)
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Accumulate pixel counts on the device without synchronizing."""
        self._counts.append(count_pixels(outputs, batch[1]))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw if the epoch is one of those that are drawn."""
        self._epoch = trainer.current_epoch
        if (self._epoch + 1) % self.every == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last epoch, unless it is drawn already."""
        if self._epoch > self._drawn:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drawn = self._epoch
        share = torch.cat(self._counts)
        shares = gather_all_tensors(share) if trainer.world_size > 1 else [share]
        if not trainer.is_global_zero:
            return
        counts = merge_devices([share.cpu().numpy() for share in shares])
        telling = select_telling_patches(counts, self.rank[: len(counts)])
        with _evaluation_mode(pl_module):
            shown = {
                "fixed": [self._make_row(trainer, pl_module, item, "random") for item in self.fixed],
                "telling": [
                    self._make_row(trainer, pl_module, item, f"{kind} ({KINDS[kind]})")
                    for kind, item in telling.items()
                ],
            }
        headings = {
            "fixed": "the same patches every time, chosen by the seed",
            "telling": "the most telling patches of this epoch",
        }
        dashboard = find_dashboard(trainer.loggers)
        for name, rows in shown.items():
            if rows:
                path = self.folder / f"epoch_{self._epoch:03d}_{name}.png"
                heading = f"Epoch {self._epoch} · validation · {headings[name]}"
                draw_panels(rows, THRESHOLD, path, heading=heading, counted="pixels")
                if dashboard is not None:
                    dashboard.log_rows(f"views/{name}", path, rows, THRESHOLD, epoch=self._epoch)

    def _make_row(self, trainer: pl.Trainer, pl_module: pl.LightningModule, item: int, kind: str) -> PanelRow:
        place = self.patches.rows[item]
        image, mask = self.patches[Draw(item, 0)]  # a plain index would use the random generator of the training
        batch = trainer.precision_plugin.convert_input(image[None].to(pl_module.device))
        with trainer.precision_plugin.val_step_context():
            by_class = compute_cancer_classes(pl_module(batch))
        merged = merge_target(mask)[0].numpy()
        classes = self.patches.rows.settings.classes
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return PanelRow(
            image=pixels,
            probability=merge_cancer_classes(by_class)[0, 0].cpu().numpy(),
            classes=classes,
            by_class=None if classes.is_binary else by_class[0].cpu().numpy(),
            labels=None if classes.is_binary else mask[0].to(torch.int8).numpy().view(np.uint8),
            truth=merged > 0.5,
            tissue=merged >= 0,
            title=f"{kind}   ·   {place.slide_id} ({place.provider}) x={place.x} y={place.y}",
            um_per_px=self.um_per_px.get(place.slide_id),
        )


@contextmanager
def _evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Evaluate as in validation, then restore the mode of each part, frozen parts included.

    Single patches use the network uncompiled, because compiling it for their shape takes a minute.
    """
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, mode in training.items():
            part.training = mode

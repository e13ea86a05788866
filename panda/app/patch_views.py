"""Pictures of validation patches as a network learns them: the same ones every time, and the epoch's most telling.

Which patches are shown follows from the seed and the counts of the epoch alone. Each patch that is shown goes through
the network once more by itself, so that nothing but four numbers a patch is kept of an epoch.
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

from panda.app.dashboard import log_rows
from panda.app.tracking import wandb_of
from panda.data.loaders import Draw
from panda.data.patchset import PatchSet
from panda.inference.panel_patches import PanelRow
from panda.report.panels import draw_panels

THRESHOLD = 0.5
"""That of `val/dice`: as training goes on the patches change, and what is asked of them does not."""
KINDS = {
    "true positive": "most cancer found",
    "false positive": "most false alarm",
    "true negative": "no cancer, none called",
    "false negative": "most cancer missed",
    "best": "highest Dice",
    "worst": "lowest Dice",
}


def pixel_counts(prob: Tensor, mask: Tensor) -> Tensor:
    """Found, falsely called and missed pixels of each patch at `THRESHOLD`.

    Args:
        prob: (N, 1, h, w).
        mask: (N, 1, h, w): 1 is cancer, below 0 not counted.

    Returns:
        (N, 3) int32: true positives, false positives, false negatives.
    """
    called, cancer = (prob >= THRESHOLD) & (mask >= 0), mask > 0.5
    parts = (called & cancer, called & ~cancer, ~called & cancer)
    return torch.stack([part.flatten(1).sum(1, dtype=torch.int32) for part in parts], dim=1)


def in_order(shares: Sequence[NDArray[np.integer]]) -> NDArray[np.integer]:
    """The counts of all devices in the order of the patches, of which each device took every n-th.

    Args:
        shares: (n, 3) of each device, the first ones' as long or longer by one.
    """
    whole = np.empty((sum(map(len, shares)), *shares[0].shape[1:]), shares[0].dtype)
    for device, share in enumerate(shares):
        whole[device :: len(shares)] = share
    return whole


def fixed_patches(has_cancer: NDArray[np.bool_], rank: NDArray[np.integer], count: int) -> list[int]:
    """The patches that are drawn every time: half with cancer (one more where odd), fewer where there are not as many.

    Args:
        has_cancer: (N,).
        rank: (N,) of a random order.
        count: How many.
    """
    order = np.argsort(rank, kind="stable")
    cancer, others = order[has_cancer[order]], order[~has_cancer[order]]
    wanted = min(max(-(-count // 2), count - len(others)), len(cancer))
    return [*cancer[:wanted].tolist(), *others[: count - wanted].tolist()]


def telling_patches(counts: NDArray[np.integer], rank: NDArray[np.integer]) -> dict[str, int]:
    """The epoch's patch of each of `KINDS`, where there is one; no patch twice.

    Args:
        counts: (N, 3), see `pixel_counts`.
        rank: (N,) of a random order, by which ties are broken.
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
    # best and worst come first: there is but one of each, and many that are full of found or missed cancer
    for kind in ("best", "worst", *KINDS):
        order = np.lexsort((rank, -scores[kind]))
        left = (int(i) for i in order if np.isfinite(scores[kind][i]) and int(i) not in chosen.values())
        if kind not in chosen and (item := next(left, None)) is not None:
            chosen[kind] = item
    return {kind: chosen[kind] for kind in KINDS if kind in chosen}


class Views(Callback):
    """Draws `views/epoch_NNN_fixed.png` and `…_telling.png` every few epochs and after the last, for W&B too.

    Of several devices the first one draws, by the counts of all.

    Args:
        patches: Of validation, in the order of its loader.
        um_per_px: Slide to µm per patch px, or None where it is unknown.
        folder: Gets the pictures.
        every: Epochs from one to the next.
        fixed: Patches that are drawn every time.
        seed: Of their choice.
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
        self.fixed = fixed_patches(patches.rows.fractions[:, 1] > 0, self.rank, fixed)
        self._counts: list[Tensor] = []
        self._epoch = self._drawn = -1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the epoch before."""
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
        """Count; what it counts stays on the device, which is not waited for."""
        self._counts.append(pixel_counts(outputs, batch[1]))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws, where it is time to."""
        self._epoch = trainer.current_epoch
        if (self._epoch + 1) % self.every == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the last epoch, of which nobody knew before that it would be."""
        if self._epoch > self._drawn:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drawn = self._epoch
        mine = torch.cat(self._counts)
        shares = gather_all_tensors(mine) if trainer.world_size > 1 else [mine]
        if not trainer.is_global_zero:
            return
        counts = in_order([share.cpu().numpy() for share in shares])
        telling = telling_patches(counts, self.rank[: len(counts)])
        with _evaluating(pl_module):
            shown = {
                "fixed": [self._row(trainer, pl_module, item, "random") for item in self.fixed],
                "telling": [
                    self._row(trainer, pl_module, item, f"{kind} ({KINDS[kind]})") for kind, item in telling.items()
                ],
            }
        headings = {
            "fixed": "the same patches every time, chosen by the seed",
            "telling": "the most telling patches of this epoch",
        }
        logger = wandb_of(trainer.loggers)
        for name, rows in shown.items():
            if rows:
                path = self.folder / f"epoch_{self._epoch:03d}_{name}.png"
                heading = f"Epoch {self._epoch} · validation · {headings[name]}"
                draw_panels(rows, THRESHOLD, path, heading=heading, counted="pixels")
                if logger is not None:
                    log_rows(logger, f"views/{name}", path, rows, THRESHOLD, epoch=self._epoch)

    def _row(self, trainer: pl.Trainer, pl_module: pl.LightningModule, item: int, kind: str) -> PanelRow:
        place = self.patches.rows[item]
        image, mask = self.patches[Draw(item, 0)]  # a plain index would draw from the generator of the training
        batch = trainer.precision_plugin.convert_input(image[None].to(pl_module.device))
        with trainer.precision_plugin.val_step_context():
            prob = pl_module(batch).float().sigmoid()[0, 0].cpu().numpy()
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return PanelRow(
            image=pixels,
            probability=prob,
            truth=(mask[0] > 0.5).numpy(),
            tissue=(mask[0] >= 0).numpy(),
            title=f"{kind}   ·   {place.slide_id} ({place.provider}) x={place.x} y={place.y}",
            um_per_px=self.um_per_px.get(place.slide_id),
        )


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """As in validation; each part then goes on as it was, a frozen one too.

    Single patches go through the network as it is written: compiled for them anew, they would cost a minute.
    """
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, mode in training.items():
            part.training = mode

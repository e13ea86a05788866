"""Classes that a configuration must not reach. The tests check that this module is not even imported."""

from torch import Tensor, nn


class Sentinel:
    """Stands for anything that is installed."""

    def __init__(self, *args: object, **options: object) -> None: ...


class OwnLoss(nn.Module):
    """Stands for a loss of a user's own package.

    Args:
        weight: What the error is multiplied by.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.weight * nn.functional.binary_cross_entropy_with_logits(logits, target)

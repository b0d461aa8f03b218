"""Yearly sunspot numbers of three centuries, for forecasting the next year."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tinynet.data.archive import read_archive
from tinynet.data.batches import ShuffledBatches

TEST_YEARS = 58


@dataclass(frozen=True)
class SunspotData:
    """One number per year; the last years are held out.

    Attributes:
        years: [N] int64, consecutive.
        sunspots: [N] float32, the mean number of sunspots in each year.
        test_years: number of years held out at the end.
    """

    years: Tensor
    sunspots: Tensor
    test_years: int = TEST_YEARS

    def __str__(self) -> str:
        first, last, held_out = int(self.years[0]), int(self.years[-1]), int(self.years[-self.test_years])
        return f"sunspots, {len(self.years)} years from {first} to {last}, held out from {held_out}"

    @property
    def persistence(self) -> Tensor:
        """The baseline forecast of the held-out years: the previous year's number."""
        return self.sunspots[-self.test_years - 1 : -1]


def load_sunspots() -> SunspotData:
    """Loads the sunspots shipped with tinynet.

    Raises:
        DataError: the file is missing or damaged.
    """
    arrays = read_archive("sunspots")
    return SunspotData(torch.from_numpy(arrays["years"]).long(), torch.from_numpy(arrays["sunspots"]))


class SunspotBatches(ShuffledBatches):
    """Windows of a series on a device: inputs [B, context, 1] of consecutive years, targets [B, 1] of the next year.

    Both are divided by the maximum over the training years. The inputs for a held-out year are the true numbers of the
    years before it, which may be held out too.

    Args:
        data: the series.
        batch_size: windows per batch, at least 1; the last batch of an epoch may be smaller.
        context: number of years in an input, at least 1 and less than the number of training years.
        seed: determines the order.
        device: of the batches.
    """

    def __init__(
        self,
        data: SunspotData,
        batch_size: int,
        *,
        context: int = 44,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        train_years = len(data.years) - data.test_years
        if not 1 <= context < train_years:
            raise ValueError(f"context must be from 1 to {train_years - 1}, got {context}")
        super().__init__(train_years - context, batch_size, seed)
        self.context = context
        self.scale = float(data.sunspots[:train_years].max())
        self.series = (data.sunspots / self.scale).to(device)

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the held-out years in order, as one batch."""
        yield self._cut(torch.arange(self.train_count, len(self.series) - self.context, device="cpu"))

    def _train_batch(self, chosen: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return self._cut(chosen)

    def _cut(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        offsets = torch.arange(self.context + 1, device=self.series.device)
        windows = self.series[starts[:, None].to(self.series.device) + offsets]
        return windows[:, :-1, None], windows[:, -1:]

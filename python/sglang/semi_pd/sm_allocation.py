# SPDX-License-Identifier: Apache-2.0
"""How the SMs of one instance are shared between its two kinds of worker."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.utils import InstanceRole

FULL_PERCENTAGE = 100
LEAST_PERCENTAGE = 10
"""No worker of a server gets less: under it prefill or decode hardly goes on."""


@dataclass(frozen=True, slots=True)
class SMAllocation:
    """Caps on the SMs that prefill and decode workers may use, the paper's (x, y).

    Each share is a whole percentage of the GPU's SMs, 1 to 100. Two shares that sum to
    more than 100 overlap: both workers may run on some SMs. Whether that is wanted is
    the caller's choice, checked by ``validate``. (100, 100) divides nothing and is
    called *unpartitioned*.

    Args:
        prefill_percentage: the prefill worker's share x, percent of the SMs.
        decode_percentage: the decode worker's share y, percent of the SMs.
    """

    prefill_percentage: int
    decode_percentage: int

    def __post_init__(self) -> None:
        for name in ("prefill_percentage", "decode_percentage"):
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not is_whole or not 1 <= value <= FULL_PERCENTAGE:
                raise ConfigError(
                    f"{name}={value!r} is not an SM share",
                    why="a share is a whole percentage of the GPU's SMs",
                    mend=f"choose {name} between 1 and {FULL_PERCENTAGE}",
                )

    @property
    def is_unpartitioned(self) -> bool:
        """Whether both workers may use every SM."""
        return (
            self.prefill_percentage == FULL_PERCENTAGE
            and self.decode_percentage == FULL_PERCENTAGE
        )

    @property
    def is_overlapping(self) -> bool:
        """Whether the two shares name some SMs twice."""
        return self.prefill_percentage + self.decode_percentage > FULL_PERCENTAGE

    @property
    def prefill_share(self) -> float:
        """Prefill's part of the GPU while both workers are busy, 0 to 1.

        The paper's x' = x / (x + y) (Algorithm 1, line 11) for shares that overlap.
        Shares that leave SMs unused are not scaled up: unused SMs speed nothing.
        """
        return self.share_of(InstanceRole.PREFILL)

    @property
    def decode_share(self) -> float:
        """Decode's part of the GPU while both workers are busy, 0 to 1 (y')."""
        return self.share_of(InstanceRole.DECODE)

    def percentage_of(self, role: InstanceRole) -> int:
        """Return the cap of one worker role, percent."""
        if role is InstanceRole.PREFILL:
            return self.prefill_percentage
        if role is InstanceRole.DECODE:
            return self.decode_percentage
        raise ValueError(f"the {role.value} role runs no model steps, so has no SMs")

    def share_of(self, role: InstanceRole) -> float:
        """Return one role's normalised share, 0 to 1."""
        total = self.prefill_percentage + self.decode_percentage
        return self.percentage_of(role) / max(FULL_PERCENTAGE, total)

    def validate(self, *, allow_overlap: bool = False) -> SMAllocation:
        """Return self, or raise ConfigError if a server cannot be divided so.

        A share is under ``LEAST_PERCENTAGE``, or the two overlap without leave.
        Unpartitioned is always allowed: it is the absence of a division.
        """
        for name, share in self.as_dict().items():
            if share < LEAST_PERCENTAGE:
                raise ConfigError(
                    f"{name}={share} is refused",
                    why=f"a worker with less than {LEAST_PERCENTAGE} % of the SMs "
                    "hardly goes on",
                    mend=f"choose {name} between {LEAST_PERCENTAGE} and "
                    f"{FULL_PERCENTAGE}",
                )
        if self.is_overlapping and not allow_overlap and not self.is_unpartitioned:
            total = self.prefill_percentage + self.decode_percentage
            raise ConfigError(
                f"prefill_percentage + decode_percentage = {total} exceeds 100",
                why="without overlap each SM belongs to one worker",
                mend="lower one share, or allow overlap (--enable-sm-overlap)",
            )
        return self

    def distance_to(self, other: SMAllocation) -> int:
        """Return how many percent the two workers' shares differ by, together."""
        prefill = abs(self.prefill_percentage - other.prefill_percentage)
        return prefill + abs(self.decode_percentage - other.decode_percentage)

    def clamped(self, minimum: int, maximum: int) -> SMAllocation:
        """Return the split with each share forced into minimum..maximum percent."""
        return replace(
            self,
            prefill_percentage=_bounded(self.prefill_percentage, minimum, maximum),
            decode_percentage=_bounded(self.decode_percentage, minimum, maximum),
        )

    def as_dict(self) -> dict[str, int]:
        """Return the two shares under their field names."""
        return {
            "prefill_percentage": self.prefill_percentage,
            "decode_percentage": self.decode_percentage,
        }

    def __str__(self) -> str:
        return f"{self.prefill_percentage}/{self.decode_percentage}"

    @classmethod
    def parse(cls, text: str) -> SMAllocation:
        """Read ``"70/30"``, the form that ``str`` prints: prefill first."""
        prefill, separator, decode = text.partition("/")
        if not separator or not (prefill.isdigit() and decode.isdigit()):
            raise ConfigError(
                f"{text!r} is not a split",
                why="a split is written PREFILL/DECODE in percent",
                mend="write it like 70/30",
            )
        return cls(int(prefill), int(decode))


UNPARTITIONED = SMAllocation(FULL_PERCENTAGE, FULL_PERCENTAGE)


def _bounded(value: int, minimum: int, maximum: int) -> int:
    return max(minimum, min(maximum, value))

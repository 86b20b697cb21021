"""Global steps at which epochs end, kept as ranges: those of any number of epochs take no memory."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Self, overload


class StepRanges(Sequence[int]):
    """A sequence of whole numbers that is read like a tuple. It does not change: `append` returns a longer one."""

    def __init__(self, *ranges: range) -> None:
        self.ranges = tuple(part for part in ranges if part)

    @classmethod
    def load(cls, saved: Iterable[Any]) -> Self:
        """Returns the sequence of a list that `save` has made, or of the numbers themselves, which older checkpoints
        have. Raises ValueError or TypeError where it holds something else than whole numbers."""
        ranges: list[range] = []
        for part in saved:
            numbers = [part] if isinstance(part, int) else list(part)
            if not all(type(number) is int and 0 <= number <= sys.maxsize for number in numbers):
                raise ValueError("the end of an epoch is a whole number")
            if len(numbers) == 1:
                _append(ranges, numbers[0])
            else:
                start, stop, step = numbers
                ranges.append(range(start, stop, step))
        if sum(map(len, ranges)) > sys.maxsize:
            raise ValueError("too many epochs")
        return cls(*ranges)

    def save(self) -> list[int | list[int]]:
        """Returns a list of [start, stop, step] for each range, and the number itself for a range of one."""
        return [part[0] if len(part) == 1 else [part.start, part.stop, part.step] for part in self.ranges]

    def append(self, number: int) -> Self:
        """Returns the sequence with one more number at its end."""
        ranges = list(self.ranges)
        _append(ranges, number)
        return type(self)(*ranges)

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.ranges)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        if isinstance(at, slice):
            return [self[place] for place in range(len(self))[at]]
        place = range(len(self))[at]  # raises IndexError, and counts from the end below zero
        for part in self.ranges:
            if place < len(part):
                break
            place -= len(part)
        return part[place]


def _append(ranges: list[range], number: int) -> None:
    """Lengthens the last of the ranges where the number follows it, else adds one."""
    last = ranges[-1] if ranges else range(0)
    if last and number > last[-1] and (len(last) == 1 or number - last[-1] == last.step):
        ranges[-1] = range(last[0], number + 1, number - last[-1])
    else:
        ranges.append(range(number, number + 1))

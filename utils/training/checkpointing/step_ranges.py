"""Sequence of global steps stored as ranges, so that the ends of any number of epochs take little memory."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Self, overload


class StepRanges(Sequence[int]):
    """Immutable sequence of integers, read like a tuple; `append` returns a longer one."""

    def __init__(self, *ranges: range) -> None:
        """Concatenates the ranges; empty ones are dropped."""
        self.ranges = tuple(part for part in ranges if part)

    @classmethod
    def from_list(cls, saved: Iterable[Any]) -> Self:
        """Restores a list written by `to_list`, or the plain list of numbers of older checkpoints.

        Raises ValueError or TypeError for anything but non-negative integers.
        """
        ranges: list[range] = []
        for part in saved:
            numbers = [part] if isinstance(part, int) else list(part)
            if not all(type(number) is int and 0 <= number <= sys.maxsize for number in numbers):
                raise ValueError("the end of an epoch should be a non-negative integer")
            if len(numbers) == 1:
                _append(ranges, numbers[0])
            else:
                start, stop, step = numbers
                ranges.append(range(start, stop, step))
        if sum(map(len, ranges)) > sys.maxsize:
            raise ValueError("too many epochs")
        return cls(*ranges)

    def to_list(self) -> list[int | list[int]]:
        """Returns [start, stop, step] for each range, or the number itself for a range of length 1."""
        return [part[0] if len(part) == 1 else [part.start, part.stop, part.step] for part in self.ranges]

    def append(self, number: int) -> Self:
        """Returns a new sequence with the number added at the end."""
        ranges = list(self.ranges)
        _append(ranges, number)
        return type(self)(*ranges)

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.ranges)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        offset = range(len(self))[index]  # raises IndexError, and resolves negative indices
        for part in self.ranges:
            if offset < len(part):
                break
            offset -= len(part)
        return part[offset]


def _append(ranges: list[range], number: int) -> None:
    """Extends the last range by the number if it continues that range, else adds a new range."""
    last = ranges[-1] if ranges else range(0)
    if last and number > last[-1] and (len(last) == 1 or number - last[-1] == last.step):
        ranges[-1] = range(last[0], number + 1, number - last[-1])
    else:
        ranges.append(range(number, number + 1))

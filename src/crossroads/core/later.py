"""Fields of results that are worked out when they are first read.

@dataclass(frozen=True, kw_only=True)   # without slots: the field lives in the instance's dict
class Answer:
    flops: Later[float] = Later(0.0)

Answer(flops=2.0).flops                       # what was given
Answer(flops=Deferred(lambda: count())).flops # counted now, and only now
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")


class Deferred(Generic[T]):
    """A value made on the first reading; copies and pickles are of the value."""

    __slots__ = ("_found", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._found: Any = None

    @property
    def value(self) -> T:
        make = self._make
        if make is not None:
            self._found = make()
            self._make = None  # and what it held
        return cast(T, self._found)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.value,)


def _itself(value: T) -> T:
    return value


class Later(Generic[T]):
    """A field that takes a value or a ``Deferred`` and reads as the value."""

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> T: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> T:
        if instance is None:
            return self._default
        value = instance.__dict__[self._name]
        return cast(T, value.value) if type(value) is Deferred else cast(T, value)

    def __set__(self, instance: object, value: T | Deferred[T]) -> None:
        instance.__dict__[self._name] = value


def unread(instance: object, name: str) -> Any:
    """Return a field as it was given, to hand it on without working it out."""
    return instance.__dict__[name]


class LaterMapping(Mapping[str, T]):
    """A mapping made on the first reading."""

    __slots__ = ("_values",)

    def __init__(self, make: Callable[[], Mapping[str, T]]) -> None:
        self._values = Deferred(make)

    def __getitem__(self, name: str) -> T:
        return self._values.value[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values.value)

    def __len__(self) -> int:
        return len(self._values.value)

    def __or__(self, other: Mapping[str, T]) -> dict[str, T]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, T]) -> dict[str, T]:
        return {**other, **self}

    def __repr__(self) -> str:
        return repr(self._values.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

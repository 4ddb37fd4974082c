"""Ways to damage the pages of an index."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

PAGE = 8192
CONTENTS = 24  # where they begin, behind the page header
META_END = CONTENTS + 400

NUMBERS = (0, 1, 2, 31, 32, 33, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000)
NUMBERS += (0xFFFFFFFE, 0xFFFFFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000)


@dataclass(frozen=True)
class Damage:
    """Bytes in the place of others; with `end`, the file ends there."""

    page: int
    offset: int
    data: bytes
    what: str
    end: bool = False

    def __str__(self) -> str:
        if self.end:
            return f"{self.what}: {self.page} pages"
        data = self.data.hex() if len(self.data) <= 64 else f"{len(self.data)} bytes"
        return f"{self.what}: page {self.page}, offset {self.offset}: {data}"


def apply(content: bytes, damages: list[Damage]) -> bytes:
    found = bytearray(content)
    for damage in damages:
        start = damage.page * PAGE + damage.offset
        if damage.end:
            del found[start:]
        found[start : start + len(damage.data)] = damage.data
    return bytes(found)


class Vandal:
    """Damages `content`, of an index; `others` are the files of other indexes."""

    def __init__(self, chance: random.Random, content: bytes, others: list[bytes]) -> None:
        self.chance = chance
        self.content = content
        self.others = others
        self.npages = len(content) // PAGE

    def damage(self) -> list[Damage]:
        ways = {
            self.flip: 6,
            self.number: 10,
            self.neighbour: 5,
            self.meta: 6,
            self.entry: 6,
            self.stretch: 3,
            self.zero: 2,
            self.swap: 2,
            self.foreign: 2,
            self.truncate: 1,
            self.garbage: 1,
        }
        found: list[Damage] = []
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 8))):
            (way,) = self.chance.choices(list(ways), list(ways.values()))
            found += way()
        return found

    def page(self) -> int:
        return self.chance.randrange(self.npages)

    def place(self, page: int, align: int = 4) -> int:
        """An offset on a page: where contents are, or in its header and special space."""
        if page == 0 and self.chance.random() < 0.8:
            end = META_END
        elif self.chance.random() < 0.5:
            end = CONTENTS + 2048
        else:
            end = PAGE
        start = 0 if self.chance.random() < 0.1 else CONTENTS
        return self.chance.randrange(start, end, align)

    def some_number(self, old: int) -> int:
        kind = self.chance.randrange(4)
        if kind == 0:
            return self.chance.choice(NUMBERS)
        if kind == 1:
            return (old + self.chance.choice((-1, 1, 2, -2, 16, 256, 65536))) % 2**32
        if kind == 2:
            return self.chance.randrange(self.npages * 20)  # of a block, or nearly
        return old ^ 1 << self.chance.randrange(32)

    def flip(self) -> list[Damage]:
        page = self.page()
        found = []
        for _ in range(self.chance.choice((1, 2, 8))):
            offset = self.place(page, 1)
            byte = self.content[page * PAGE + offset] ^ 1 << self.chance.randrange(8)
            found.append(Damage(page, offset, bytes([byte]), "bit"))
        return found

    def number_at(self, page: int, offset: int, what: str) -> list[Damage]:
        (old,) = struct.unpack_from("<I", self.content, page * PAGE + offset)
        return [Damage(page, offset, struct.pack("<I", self.some_number(old)), what)]

    def number(self) -> list[Damage]:
        page = self.page()
        return self.number_at(page, self.place(page), "number")

    def neighbour(self) -> list[Damage]:
        """A number that stands elsewhere on the page, as of another block or list."""
        page = self.page()
        start, from_ = self.place(page), self.place(page)
        data = self.content[page * PAGE + from_ : page * PAGE + from_ + 4]
        return [Damage(page, start, data, "neighbour")]

    def meta(self) -> list[Damage]:
        return self.number_at(0, self.chance.randrange(CONTENTS + 8, META_END, 4), "metapage")

    def entry(self) -> list[Damage]:
        """On the first pages of data: entries of lists, first headers."""
        page = min(self.chance.randrange(1, 6), self.npages - 1)
        return self.number_at(page, self.chance.randrange(CONTENTS, CONTENTS + 1600, 4), "entry")

    def stretch(self) -> list[Damage]:
        page = self.page()
        offset = self.place(page, 1)
        length = min(self.chance.choice((2, 16, 200, PAGE)), PAGE - offset)
        return [Damage(page, offset, self.chance.randbytes(length), "stretch")]

    def zero(self) -> list[Damage]:
        page = self.page()
        offset = self.chance.choice((0, CONTENTS, self.place(page)))
        length = PAGE - offset if self.chance.random() < 0.5 else min(512, PAGE - offset)
        return [Damage(page, offset, bytes(length), "zeros")]

    def swap(self) -> list[Damage]:
        a, b = self.page(), self.page()
        pages = [self.content[n * PAGE : (n + 1) * PAGE] for n in (a, b)]
        one = [Damage(a, 0, pages[1], f"page {b} over it")]
        return one if self.chance.random() < 0.5 else [*one, Damage(b, 0, pages[0], "swapped")]

    def foreign(self) -> list[Damage]:
        other = self.chance.choice(self.others)
        page = self.page()
        from_ = self.chance.randrange(len(other) // PAGE)
        if self.chance.random() < 0.5:
            from_ = min(page, len(other) // PAGE - 1)
        return [Damage(page, 0, other[from_ * PAGE : (from_ + 1) * PAGE], "foreign")]

    def truncate(self) -> list[Damage]:
        return [Damage(self.chance.randrange(1, self.npages + 1), 0, b"", "truncated", end=True)]

    def garbage(self) -> list[Damage]:
        pages = self.chance.randrange(1, 4)
        data = self.chance.randbytes(pages * PAGE) if self.chance.random() < 0.5 else b""
        data = data or bytes(pages * PAGE)
        return [Damage(self.npages, 0, data, "behind the end")]

"""Where the files of a tar archive lie, read from its headers alone."""

import os
from typing import NamedTuple

from lightning_vl.data.datasets.image_shards import BLOCK, Member
from lightning_vl.errors import UserError

REGULAR = (b"0", b"\0", b"7")
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: a size may be given and means nothing
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
LONG_NAME, EXTENDED = b"L", b"x"  # of GNU's tar and of POSIX: what is too long for the next header


class Contents(NamedTuple):
    """What an archive holds.

    Attributes:
        files: name and place of each regular file, all of them there to the last byte.
        whole: False where the archive is cut off or damaged after them.
    """

    files: list[tuple[str, Member]]
    whole: bool


def contents(shard: str) -> Contents:
    """The files of an archive up to its end, or to where it is damaged.

    Every header is one read of 512 bytes. The standard library takes several times as long, most of all where each file
    has an extended header, as WebDataset's writer gives it.

    Raises:
        UserError: it cannot be opened, or is no tar file, or a compressed one.
    """
    files: list[tuple[str, Member]] = []
    try:
        with open(shard, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            place = 0
            name: str | None = None  # what an extended header says of the next file
            size: int | None = None
            sparse = False
            while True:
                header = os.pread(file.fileno(), BLOCK, place)
                if header == bytes(BLOCK):
                    return Contents(files, whole=True)
                if not _is_header(header):
                    break
                kind = header[156:157]
                here = _number(header[124:136])
                content = place + BLOCK
                if kind in (EXTENDED, LONG_NAME):
                    text = os.pread(file.fileno(), here, content)
                    if kind == LONG_NAME:
                        name = _text(text)
                    else:
                        records = _records(text)
                        name = _text(records[b"path"]) if b"path" in records else name
                        size = int(records[b"size"]) if b"size" in records else size
                        sparse = any(key.startswith(b"GNU.sparse") for key in records)
                else:
                    here = here if size is None else size
                    if kind in REGULAR and not sparse and content + here <= length:
                        files.append((_name(header) if name is None else name, Member(shard, content, here)))
                    here = 0 if kind in WITHOUT_CONTENT else here
                    name, size, sparse = None, None, False
                place = content + -(-here // BLOCK) * BLOCK
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}", "check the source's root") from error
    if place == 0 and (len(header) == BLOCK or header.startswith(COMPRESSED)):
        raise UserError(f"{shard} is no tar file, or a compressed one", "unpack it once: gunzip, xz -d or zstd -d")
    return Contents(files, whole=False)


def _is_header(header: bytes) -> bool:
    """Whether the sum over its bytes is the one that it states; the field of the sum itself counts as spaces."""
    if len(header) < BLOCK:
        return False
    try:
        stated = int(header[148:156].rstrip(b" \0"), 8)
    except ValueError:
        return False
    return stated == sum(header) - sum(header[148:156]) + 8 * 32


def _number(field: bytes) -> int:
    """Octal digits; or, of a large file, base 256."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and digits.strip(b"01234567") == b"" else 0


def _name(header: bytes) -> str:
    name = _text(header[:100])
    folder = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU's tar keeps other things there
    return f"{folder}/{name}" if folder else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(text: bytes) -> dict[bytes, bytes]:
    """Lines of `<length of the line> <key>=<value>`."""
    records: dict[bytes, bytes] = {}
    while text:
        digits, found, _ = text.partition(b" ")
        if not (found and digits.isdigit() and 0 < int(digits) <= len(text)):
            break  # the zeros that fill the block up, or damage
        key, _, value = text[len(digits) + 1 : int(digits) - 1].partition(b"=")
        records[key] = value
        text = text[int(digits) :]
    return records

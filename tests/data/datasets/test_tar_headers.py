"""Headers of tar archives: the standard library's answer in every form, and archives that end too early."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from lightning_vl.data.datasets.image_shards import members
from lightning_vl.data.datasets.tar_headers import contents
from lightning_vl.errors import UserError


def write(path: Path, form: int, mtime: float = 1.5) -> None:
    """Short and long names, letters beyond ASCII, empty files, folders, links, and files that fill their blocks."""
    with tarfile.open(path, "w", format=form) as tar:
        long = 95 if form == tarfile.USTAR_FORMAT else 150  # characters of a name's last part
        for number, name in enumerate(["a.jpg", "d/" * 60 + "b.txt", "é.jpg", "n" * long, "d/" * 45 + "n" * 90, "./c"]):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 512 * (number % 2) + number, mtime  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"kind {kind.decode()}")
            info.type, info.linkname, info.size = kind, "a.jpg", 0
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_is_read_as_the_standard_library_reads_it(tmp_path: Path, form: int) -> None:
    """Breaks if a name or a place is misread: a caption would go to another image."""
    path = tmp_path / "a.tar"
    write(path, form)
    found = contents(str(path))
    assert found.whole
    assert found.files == members(str(path))
    assert len(found.files) == 7
    assert found.files[3][1].content() == bytes([3]) * 515


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_cut_anywhere_gives_what_is_whole(tmp_path: Path, form: int) -> None:
    """Breaks if a file whose end is missing is given out, or one before the cut is lost."""
    whole, cut = tmp_path / "a.tar", tmp_path / "b.tar"
    write(whole, form)
    files = [(name, member.offset, member.size) for name, member in contents(str(whole)).files]
    data = whole.read_bytes()
    for length in range(0, files[-1][1], 256):
        cut.write_bytes(data[:length])
        found = contents(str(cut))
        assert not found.whole
        expected = [file for file in files if file[1] + file[2] <= length]
        assert [(name, member.offset, member.size) for name, member in found.files] == expected, length


def test_damage_in_the_middle_ends_it(tmp_path: Path) -> None:
    """Breaks if a header that is none is taken for a file."""
    path = tmp_path / "a.tar"
    write(path, tarfile.USTAR_FORMAT)
    with path.open("r+b") as file:
        file.seek(members(str(path))[1][1].offset - 512)
        file.write(b"garbage")
    found = contents(str(path))
    assert [name for name, _ in found.files] == ["a.jpg"]
    assert not found.whole


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    """Breaks if a compressed archive or a page of the web looks like an empty shard."""
    path = tmp_path / "a.tar"
    with pytest.raises(UserError, match="No such file"):
        contents(str(path))
    write(path, tarfile.PAX_FORMAT)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="no tar file, or a compressed one"):
        contents(str(path))
    path.write_text("page not found" * 50)
    with pytest.raises(UserError, match="no tar file"):
        contents(str(path))

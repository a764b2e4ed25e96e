from __future__ import annotations

import pytest

from xenvirtio.xenstore.path import join, leaf, parent, resolve
from xenvirtio.xenstore.wire import RefusedError

HOME = "/local/domain/5"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"/", "/"),
        (b"/a", "/a"),
        (b"/a-Z_0@9/b", "/a-Z_0@9/b"),
        (b"device/virtio", "/local/domain/5/device/virtio"),
        (b"a@b", "/local/domain/5/a@b"),
        (b"/local/domain/12345/" + b"x" * 2047, "/local/domain/12345/" + "x" * 2047),
        (b"y" * 2047, HOME + "/" + "y" * 2047),
    ],
)
def test_valid_paths(text: bytes, path: str) -> None:
    assert resolve(text, HOME) == path


@pytest.mark.parametrize(
    "text",
    [b"", b"/a/", b"//", b"/a//b", b"a/", b"/a+b", b"/a.b", b"/a:b", b"/a b", b"/\xff", b"/a\n", b"@x", b"@",
     b"/" + b"x" * 2048, b"y" * 2048, b"/local/domain/1/" + b"x" * 2048],
)  # fmt: skip
def test_invalid_paths(text: bytes) -> None:
    with pytest.raises(RefusedError, match="EINVAL"):
        resolve(text, HOME)


def test_special_names_only_where_allowed() -> None:
    assert resolve(b"@releaseDomain/3", HOME, special=True) == "@releaseDomain/3"
    with pytest.raises(RefusedError):
        resolve(b"@releaseDomain", HOME)


def test_an_unlimited_path_still_ends_at_the_protocols_bound() -> None:
    assert len(resolve(b"/" + b"x" * 3071, HOME, length_max=0)) == 3072
    with pytest.raises(RefusedError):
        resolve(b"/" + b"x" * 3072, HOME, length_max=0)


@pytest.mark.parametrize(
    ("path", "above", "last"),
    [
        ("/a/b", "/a", "b"),
        ("/a", "/", "a"),
        ("@releaseDomain/3", None, "3"),
    ],
)
def test_the_parts_of_a_path(path: str, above: str | None, last: str) -> None:
    assert (parent(path), leaf(path)) == (above, last)
    if above is not None:
        assert join(above, last) == path


def test_the_root_has_no_parent() -> None:
    assert parent("/") is None

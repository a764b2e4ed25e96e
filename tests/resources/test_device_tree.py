"""dtc and libfdt: what they refuse is an error of ours in one line, and no file brings them down."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.resources.device_tree import TREE_BYTES_MAX, TreeReader, compile_tree, read_host_source

pytestmark = pytest.mark.skipif(not shutil.which("dtc"), reason="needs dtc (device-tree-compiler)")
SOURCE = "/dts-v1/; / { text = \"a\"; n@1 { reg = <1>; }; };"


def test_source_is_compiled_and_read_back(tmp_path: Path) -> None:
    pytest.importorskip("libfdt", reason="needs pylibfdt")
    (tmp_path / "part.dtsi").write_text("/ { included; };")
    (tmp_path / "x.dts").write_text('/dts-v1/; / { text = "a"; }; /include/ "part.dtsi"')
    source, blob = read_host_source(tmp_path / "x.dts")
    assert "included" in source
    (tmp_path / "x.dtb").write_bytes(blob)
    assert read_host_source(tmp_path / "x.dtb") == (source, blob)
    assert TreeReader(blob).properties("/") == ["text", "included"]


def test_what_dtc_says_is_passed_on_in_one_line() -> None:
    with pytest.raises(ResourceError, match=r"x\.dts: dtc: .*syntax error") as refused:
        compile_tree("/dts-v1/; / { {\n", "x.dts")
    assert "\n" not in str(refused.value)


def test_a_tree_beyond_what_xen_takes_is_refused() -> None:
    big = "x" * 60_000
    properties = "".join(f'p{number} = "{big}";' for number in range(TREE_BYTES_MAX // 60_000 + 1))
    with pytest.raises(ResourceError, match="Xen takes"):
        compile_tree("/dts-v1/; / { " + properties + " };", "x")


def test_without_dtc_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="device-tree-compiler"):
        compile_tree(SOURCE, "x")


def test_without_libfdt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "libfdt", None)
    with pytest.raises(ConfigurationError, match=r"xenvirtio\[static\]"):
        TreeReader(compile_tree(SOURCE, "x"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 200))
@example(b"", 0)
@example(b"\xff" * 8, 4)
def test_any_file_is_a_tree_or_an_error(tmp_path: Path, noise: bytes, at: int) -> None:
    """A good blob with some of it overwritten."""
    pytest.importorskip("libfdt", reason="needs pylibfdt")
    good = compile_tree(SOURCE, "x")
    (tmp_path / "x.dtb").write_bytes((good[:at] + noise + good[at + len(noise) :])[: max(len(good), 1)])
    try:
        _, blob = read_host_source(tmp_path / "x.dtb")
    except ConfigurationError as error:
        said = str(error)
    else:
        tree, said = TreeReader(blob), ""
        for name in tree.properties("/"):
            tree.value("/", name)
    assert "\n" not in said

"""Which CPUs saturate in 8 bits."""

from pathlib import Path

import pytest

from serving.cpu_features import saturates_8_bits


@pytest.mark.parametrize(
    ("cpuinfo", "saturates"),
    [
        ("flags\t\t: fpu avx2 fma\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("Features\t: fp asimd\n", False),
    ],
)
def test_x86_without_vnni_saturates(tmp_path: Path, cpuinfo: str, *, saturates: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert saturates_8_bits(path) is saturates


def test_where_nothing_says_it_the_answer_is_no(tmp_path: Path) -> None:
    assert not saturates_8_bits(tmp_path / "cpuinfo")

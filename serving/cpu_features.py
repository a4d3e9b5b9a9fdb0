"""What the CPU can do, as far as results depend on it."""

import re
from pathlib import Path


def saturates_8_bits(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is an x86 CPU without VNNI: there two 8-bit products are added in 16 bits.

    ONNX Runtime can be told to be exact there (serving.onnx_session), OpenVINO cannot.

    Args:
        cpuinfo: where Linux says it. Without that file the answer is no.
    """
    try:
        flags = set(re.findall(r"\w+", cpuinfo.read_text("utf-8", errors="replace")))
    except OSError:
        return False
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni"}

"""Is there an energy counter of the whole chip (Apple Silicon, NVIDIA Jetson)?

zeus reads both; this module only finds out. No meter of the harness uses the answer yet, because none of
them could be checked on such a machine.
"""

from __future__ import annotations

import platform
import sys

from harness.metering.zeus_window import quiet_zeus

__all__ = ["probe_soc"]


def probe_soc() -> str | None:
    """Return why zeus cannot read a chip's counter here and how to enable it; ``None`` if it can."""
    if sys.platform not in ("darwin", "linux"):
        return f"chips have a counter that is readable on macOS and Linux, and this is {platform.system()}"
    quiet_zeus()
    from zeus.device.soc import get_soc
    from zeus.exception import ZeusBaseError

    try:
        get_soc()
    except (ZeusBaseError, OSError) as error:
        if sys.platform == "darwin" and platform.machine() == "arm64":
            return "zeus has no access to Apple Silicon's counters (run `pip install zeus-apple-silicon`)"
        if "observable" in str(error):
            return "the chip is neither Apple Silicon nor a Jetson"
        return f"zeus cannot read the chip's counters: {(str(error) or type(error).__name__).splitlines()[0]}"
    return None

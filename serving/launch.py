"""The command `simple-diffusion-server`: `python -m serving` under a name that shells complete."""

import os
import signal


def prepare() -> None:
    """What must be settled before anything else is imported."""
    # The imports take a second, in which Python would answer Ctrl-C with a traceback.
    for early in (signal.SIGINT, signal.SIGTERM):
        signal.signal(early, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing is there yet that could be reloaded
    # gRPC's core reads this when it is imported. It writes lines of its own past Python's logging,
    # some of them for whatever a client sends that it does not like.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def main() -> None:
    """Runs a server; ends the process."""
    prepare()
    from serving import __main__  # noqa: PLC0415  (after prepare)

    __main__.main()

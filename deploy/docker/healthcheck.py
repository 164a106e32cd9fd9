"""Is this container's process well? `healthcheck.py worker|trainer [live|ready]`; exit status 0: yes.

Needs the standard library only and starts in some 50 ms: images have no curl, and importing recstream takes seconds.
"""

import os
import sys
import urllib.request

PORTS = {"worker": ("RECSTREAM_HTTP_PORT", "6066"), "trainer": ("RECSTREAM_TRAINER_HTTP_PORT", "6166")}
EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # what listens on all addresses answers on these
TIMEOUT_SECONDS = 4.0
USAGE_STATUS = 2


def check(role: str, kind: str) -> str:
    """Ask the process of this container; returns its answer.

    Raises:
        OSError: it does not listen, does not answer in time, or says that it is not well (status 503).
    """
    variable, default = PORTS[role]
    port = int(os.environ.get(variable) or default)
    host = os.environ.get("RECSTREAM_HTTP_HOST", "")
    host = EVERYWHERE.get(host, host)
    host = f"[{host}]" if ":" in host else host
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy setting must not lead us astray
    with opener.open(f"http://{host}:{port}/health/{kind}", timeout=TIMEOUT_SECONDS) as reply:
        return str(reply.read().decode())


def main(arguments: list[str]) -> int:
    """Exit status of the check."""
    role, kind = [*arguments, "live"][:2] if arguments else ("", "")
    if role not in PORTS or kind not in ("live", "ready"):
        print(__doc__, file=sys.stderr)
        return USAGE_STATUS
    try:
        print(check(role, kind))
    except OSError as error:
        print(f"the {role} is not {kind}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

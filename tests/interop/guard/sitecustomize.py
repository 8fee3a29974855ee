"""Refuses and records every connection to another machine. Python imports it if this folder is in PYTHONPATH."""

import ipaddress
import os
import sys


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "", None)


def _guard(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "localhost"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if not _is_loopback(host):
        with open(os.environ["EGRESS_LOG"], "a") as log:
            log.write(f"{event} {host}\n")
        raise OSError(f"the test suite does not allow connections to {host}")


sys.addaudithook(_guard)

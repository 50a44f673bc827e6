"""A program that becomes another one, under the conditions that Postgres needs. Standard library only; run by its path.

    python launcher.py PARENT_PID UID GID PROGRAM [ARGUMENT …]

- When PARENT_PID dies, however it dies, the program gets SIGINT (Linux; prctl(2), PR_SET_PDEATHSIG).
- UID 0 stands for: stay who you are. Postgres refuses to run as root, so root gives up everything and becomes UID.
  If that user may not reach the program or a path among its arguments (a checkout under /root, say), it keeps one
  capability across exec, to search folders (Linux; capabilities(7), ambient set). No folder's mode is changed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# From linux/prctl.h, linux/capability.h and linux/securebits.h.
PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522


class Header(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class Data(ctypes.Structure):
    """struct __user_cap_data_struct, of which version 3 takes two."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def main() -> None:
    """Becomes the program."""
    parent, uid, gid = (int(one) for one in sys.argv[1:4])
    command = sys.argv[4:]
    is_linux = sys.platform == "linux"
    if uid:
        os.setgroups([])
        os.setgid(gid)
        if is_linux and not _may_reach(command, uid):
            _become_with_search(uid)
        else:
            os.setuid(uid)
    if is_linux:
        _prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it died before the line above
            sys.exit("the parent is gone")
    os.execv(command[0], command)  # noqa: S606 - becoming the program is the point


def _may_reach(command: list[str], uid: int) -> bool:
    """Whether the user could reach every path of the command; asked in a child that becomes the user and ends."""
    child = os.fork()
    if child == 0:
        os.setuid(uid)
        paths = [one for one in command if one.startswith("/")]
        os._exit(0 if all(os.access(one, os.X_OK) for one in paths) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _become_with_search(uid: int) -> None:
    """Becomes the user, with the least capability at hand that lets it search folders."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(CAPABILITY_VERSION_3, 0), (Data * 2)()
    _check(libc.capget(ctypes.byref(header), data), "capget")
    capability = CAP_DAC_READ_SEARCH if data[0].permitted & (1 << CAP_DAC_READ_SEARCH) else CAP_DAC_OVERRIDE
    # Without the fixup setuid keeps capabilities, and access(2), by which initdb looks for its programs, heeds them.
    _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setuid(uid)
    only = 1 << capability
    data[0].effective = data[0].permitted = data[0].inheritable = only
    data[1].effective = data[1].permitted = data[1].inheritable = 0
    _check(libc.capset(ctypes.byref(header), data), "capset")
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0)][:4]
    _check(ctypes.CDLL(None, use_errno=True).prctl(option, *padded), f"prctl {option}")


def _check(result: int, call: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()

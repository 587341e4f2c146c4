"""Runs one program under limits; started by `sandbox` as a process of its own, never imported.

Standard library only: it runs with `python -I`, and gives up all rights before the program's first line.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

NOBODY = 65534
FILE_BYTES = 1 << 20
OPEN_FILES = 32
UNSUPPORTED = 97

# Landlock, the kernel's own file sandbox (linux/landlock.h); the numbers are those of every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
_READS = _EXECUTE | _READ_FILE | _READ_FOLDER
# Writing, removing and making entries of any kind (bits 1, 4 .. 12), linking (13) and truncating (14).
_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
_LEAST_ABI = 3
# linux/prctl.h and linux/capability.h
_KEEP_CAPABILITIES, _NO_NEW_PRIVS = 8, 38
_CAPABILITY_VERSION, _READ_SEARCH = 0x20080522, 1 << 2


def confine(folder: str) -> None:
    """From here on this process can write below `folder` alone, and read there and where Python lives."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CREATE_RULESET, None, 0, _VERSION) < _LEAST_ABI:
        raise OSError("this kernel has no Landlock that knows truncation (Linux 6.2 or newer has)")
    handled = struct.pack("=Q", _READS | _WRITES)
    rules = _checked(libc, libc.syscall(_CREATE_RULESET, handled, len(handled), 0))
    readable = {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64"}
    for path, rights in [(folder, _READS | _WRITES), *((path, _READS) for path in sorted(readable))]:
        if os.path.isdir(path):
            place = os.open(path, os.O_PATH | os.O_DIRECTORY)
            allowed = struct.pack("=Qi", rights, place)
            _checked(libc, libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, allowed, 0))
            os.close(place)
    _checked(libc, libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(libc, libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _checked(libc: ctypes.CDLL, result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def become_nobody() -> None:
    """Root is bound by no limit on processes, so it is given up.

    What stays is the right to read, within `confine`, because Python may be installed in root's own folder.
    """
    if os.getuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _checked(libc, libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0))
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:  # in a user namespace, whose only user is not root outside
        return
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _checked(libc, libc.capset(header, struct.pack("=6I", _READ_SEARCH, _READ_SEARCH, 0, 0, 0, 0)))


def limit(seconds: int, memory: int) -> None:
    """Processor seconds, bytes of address space, size and number of files, and no further process."""
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))


def main() -> None:
    """Arguments: work folder, seconds, bytes, a word. The program comes on stdin; the word goes to the
    first stdout when it ran to its end without an exception, else what stopped it."""
    folder, seconds, memory, word = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    source = sys.stdin.read()
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.chdir(folder)
    try:
        os.chown(folder, NOBODY, NOBODY)
    except OSError:
        os.chmod(folder, 0o700)
    try:
        confine(folder)
        become_nobody()
        limit(seconds, memory)
    except OSError as error:
        os.write(report, f"no confinement: {error}".encode())
        os._exit(UNSUPPORTED)
    del sys.argv[1:]
    try:
        exec(compile(source, "program", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        try:
            said = f"{type(error).__name__}: {error}"[:300]
        except BaseException:
            said = type(error).__name__
        os.write(report, said.encode("utf-8", "replace"))
        os._exit(1)
    os.write(report, word.encode())
    os._exit(0)


if __name__ == "__main__":
    main()

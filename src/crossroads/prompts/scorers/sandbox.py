"""What runs untrusted Python: a child process that gives up its rights before the code begins.

This file is read as text and handed to a fresh interpreter; nothing of it may import the package.
The child reads ``{"code", "tests", "token", "seconds", "memory", "file_bytes"}`` from its standard
input and writes the token to what was its standard output once code and tests ran to their end.

Its limits: CPU seconds, address space, size of files, number of open files, no core dump; on Linux
besides, through a seccomp filter, no new process or program, no socket, no signal to other
processes, no look into their memory and no lifting of these limits. They protect from accidents and
cheap tricks and are not a security boundary: the code still reads what the user may read.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# syscall numbers: forks and execution; sockets; signals; other processes' memory; raising limits
FORBIDDEN = {
    "x86_64": (
        *(57, 58, 59, 322, 41, 53, 62, 200, 234, 424, 129, 297),
        *(101, 310, 311, 425, 321, 160, 302),
    ),
    "aarch64": (
        *(221, 281, 198, 199, 129, 130, 131, 424, 138, 240),
        *(117, 270, 271, 425, 280, 164, 261),
    ),
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JEQ, JGE, JSET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def filter_program(machine: str) -> list[tuple[int, int, int, int]]:
    """Return the BPF instructions (code, jump if true, jump if false, operand)."""
    program = [
        (LOAD, 0, 0, ARCH_AT),
        (JEQ, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [(JGE, 0, 1, X32_BIT), (RETURN, 0, 0, ERRNO | EPERM)]
    for number in FORBIDDEN[machine]:
        program += [(JEQ, 0, 1, number), (RETURN, 0, 0, ERRNO | EPERM)]
    program += [
        (JEQ, 0, 1, CLONE3),  # its flags are behind a pointer; libraries fall back to clone
        (RETURN, 0, 0, ERRNO | ENOSYS),
        (JEQ, 0, 3, CLONE[machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
        (JSET, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, ERRNO | EPERM),
        (RETURN, 0, 0, ALLOW),
    ]
    return program


def forbid_syscalls() -> bool:
    """Install the filter; return whether the kernel took it."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in CLONE:
        return False
    program = b"".join(struct.pack("HBBI", *line) for line in filter_program(machine))
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    whole = Program(len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    refused = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0)
    return bool(refused == 0)


def bound_resources(seconds: int, memory: int, file_bytes: int) -> None:
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    verdict = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    bound_resources(job["seconds"], job["memory"], job["file_bytes"])
    if not forbid_syscalls():  # this bound would forbid threads, too
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    scope: dict[str, object] = {"__name__": "answer", "__builtins__": __builtins__}
    exec(compile(job["code"], "answer", "exec"), scope)
    exec(compile(job["tests"], "tests", "exec"), scope)
    os.write(verdict, job["token"].encode())


main()

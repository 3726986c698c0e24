"""What runs untrusted Python: a child process that gives up its rights before the code begins.

This file is read as text and handed to a fresh interpreter; nothing of it may import the package.
Its one argument is a JSON object of bounds, ``{"seconds", "memory", "file_bytes"}``. On standard
input come three frames, a length of four bytes and as many bytes each: the code, the tests and a
token. The child answers on what was its standard output: a dot once the code ran to its end, a dot
once the tests did, then the token. The next frame is sent after each answer only, so that tests are
unknown to the code while it loads, and the token as long as anything of it runs.

Its limits: CPU seconds, address space, size of each file, number of open files, no core dump. On
Linux besides:

- root's capabilities are dropped;
- Landlock (kernel 5.13 and later, unless switched off) leaves writing, making, moving and removing
  of files to the working folder. Where the kernel lacks it, files are read only, everywhere;
- a seccomp filter (x86_64 and aarch64) refuses new processes and programs, sockets, signals, looks
  into other processes and their priorities, shared memory and message queues, owners, modes, times
  and attributes of files, and the lifting of these limits.

They protect from accidents and cheap tricks and are not a security boundary: the code still reads
what the user may read.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# Numbers of refused system calls. Those without a machine are the same on both.
REFUSED_EVERYWHERE = (
    *(424, 425, 438, 440),  # signals by descriptor; io_uring; other processes' descriptors, memory
    *(437, 452, 463, 466, 469),  # openat2; modes and attributes by path
)
REFUSED = {
    "x86_64": (
        *(57, 58, 59, 322, 41, 53),  # forks and execution; sockets
        *(62, 200, 234, 129, 297, 101, 310, 311, 321),  # signals; other processes' memory; bpf
        *(160, 302, 141, 251, 142, 144, 203, 314, 256, 279),  # limits; priorities; pages
        *(90, 91, 268, 92, 93, 94, 260, 132, 235, 261, 280),  # modes, owners and times of files
        *(188, 189, 190, 197, 198, 199, 76, 304),  # their attributes; truncate; files by handle
        *(29, 30, 31, 64, 65, 220, 66, 68, 69, 70, 71, 240, 241),  # memory and queues shared
        *(248, 249, 250),  # keys
    ),
    "aarch64": (
        *(221, 281, 198, 199),
        *(129, 130, 131, 138, 240, 117, 270, 271, 280),
        *(164, 261, 140, 30, 118, 119, 122, 274, 238, 239),
        *(52, 53, 54, 55, 88),
        *(5, 6, 7, 14, 15, 16, 45, 265),
        *(194, 195, 196, 190, 191, 192, 193, 186, 187, 188, 189, 180, 181),
        *(217, 218, 219),
    ),
}
REARRANGING = {  # makes, moves and removes files; refused where Landlock does not watch over it
    "x86_64": (82, 264, 316, 83, 258, 84, 85, 86, 265, 87, 263, 88, 266, 133, 259),
    "aarch64": (38, 276, 34, 37, 35, 36, 33),
}
OPENING = {"x86_64": ((2, 24), (257, 32)), "aarch64": ((56, 32),)}  # where the flags are
WRITE_FLAGS = 0o3 | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, AND, JEQ, JGE, JSET, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2

CAPABILITY_VERSION = 0x20080522
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock, on every machine
VERSION_FLAG, PATH_BENEATH = 1, 1
WRITE_FILE, REMOVE_AND_MAKE, REFER, TRUNCATE, DEVICE_CONTROL = (
    1 << 1,
    0x1FF0,
    1 << 13,
    1 << 14,
    1 << 15,
)
RIGHTS_SINCE = ((1, WRITE_FILE | REMOVE_AND_MAKE), (2, REFER), (3, TRUNCATE), (5, DEVICE_CONTROL))
DEVICES = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | DEVICE_CONTROL  # also sockets and pipes with names


def filter_program(machine: str, *, can_write: bool) -> list[tuple[int, int, int, int]]:
    """Return the BPF instructions (code, jump if true, jump if false, operand)."""
    program = [
        (LOAD, 0, 0, ARCH_AT),
        (JEQ, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [(JGE, 0, 1, X32_BIT), (RETURN, 0, 0, ERRNO | EPERM)]
    refused = REFUSED_EVERYWHERE + REFUSED[machine] + (() if can_write else REARRANGING[machine])
    for number in refused:
        program += [(JEQ, 0, 1, number), (RETURN, 0, 0, ERRNO | EPERM)]
    for number, flags_at in OPENING[machine]:
        program += _open_rule(number, flags_at, can_write=can_write)
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


def _open_rule(number: int, flags_at: int, *, can_write: bool) -> list[tuple[int, int, int, int]]:
    """Return what refuses opening to write; or, where Landlock judges that, to truncate what is
    opened to read, which its first two versions let pass."""
    if can_write:
        test = [(AND, 0, 0, 0o3 | os.O_TRUNC), (JEQ, 0, 1, os.O_TRUNC)]
    else:
        test = [(JSET, 0, 1, WRITE_FLAGS)]
    body = [(LOAD, 0, 0, flags_at), *test, (RETURN, 0, 0, ERRNO | EPERM), (RETURN, 0, 0, ALLOW)]
    return [(JEQ, 0, len(body), number), *body]


def forbid_syscalls(*, can_write: bool) -> bool:
    """Install the filter; return whether the kernel took it."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in CLONE:
        return False
    lines = filter_program(machine, can_write=can_write)
    program = b"".join(struct.pack("HBBI", *line) for line in lines)
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    whole = Program(len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    refused = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0)
    return bool(refused == 0)


def drop_capabilities() -> None:
    """Give up what root may and others may not, for good."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))


def confine_writing() -> bool:
    """Leave only the working folder to be written, by Landlock; return whether the kernel did."""
    libc = ctypes.CDLL(None)

    def call(number: int, *given: int | bytes | None) -> int:
        return int(
            libc.syscall(*(ctypes.c_long(g) if isinstance(g, int) else g for g in (number, *given)))
        )

    version = call(CREATE_RULESET, None, 0, VERSION_FLAG)
    if version < 1:
        return False
    handled = sum(rights for since, rights in RIGHTS_SINCE if version >= since)
    ruleset = call(CREATE_RULESET, struct.pack("Q", handled), 8, 0)
    if ruleset < 0:
        return False
    for path, rights in (
        (".", handled & ~DEVICES),
        (os.devnull, handled & (WRITE_FILE | TRUNCATE)),
    ):
        descriptor = os.open(path, os.O_PATH)
        call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
        os.close(descriptor)
    refused = call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return refused == 0


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


def give_up_rights() -> None:
    can_write = False
    if sys.platform == "linux":
        drop_capabilities()
        can_write = confine_writing()
    if not forbid_syscalls(can_write=can_write):  # this bound would forbid threads, too
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> None:
    # what is used after the code ran is bound before, so that the code cannot replace it
    read, write, execute, translate, number = os.read, os.write, exec, compile, int.from_bytes
    jobs, verdict = os.dup(0), os.dup(1)

    def take(size: int) -> bytes:
        found = b""
        while len(found) < size:
            portion = read(jobs, size - len(found))
            if not portion:
                raise EOFError
            found += portion
        return found

    def receive() -> bytes:
        return take(number(take(4), "big"))

    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    bound_resources(**json.loads(sys.argv.pop()))
    give_up_rights()
    scope: dict[str, object] = {"__name__": "answer", "__builtins__": __builtins__}
    for part in ("answer", "tests"):
        execute(translate(receive().decode("utf-8", "surrogatepass"), part, "exec"), scope)
        write(verdict, b".")
    write(verdict, receive())


main()

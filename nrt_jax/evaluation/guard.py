"""Runs one program that a model wrote, in an interpreter of its own: `python -I -S guard.py LIMITS < program`.

Not imported by anything: sandbox.py starts it. It gives up its rights first (limits, then a filter of system calls),
runs the program, and writes the word that it was given to standard output if the program came to its end.
What is refused fails inside of the program with "operation not permitted".
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# System calls of x86_64 and of aarch64 (None: it has none of that name), by what they would allow.
REFUSED = {
  # sockets, and the ring by which they could be had without their own calls
  "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "io_uring_setup": (425, 425),
  # other programs, and signals to processes that run already
  "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
  "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
  "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "ptrace": (101, 117), "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271), "prlimit64": (302, 261), "setrlimit": (160, 164), "setsid": (112, 157),
  "setpgid": (109, 154), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
  # changes of the file system; opening to write is refused below
  "creat": (85, None), "openat2": (437, 437), "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38),
  "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None),
  "linkat": (265, 37), "unlink": (87, None), "unlinkat": (263, 35), "symlink": (88, None), "symlinkat": (266, 36),
  "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
  "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "mknod": (133, None), "mknodat": (259, 33),
  "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None),
  "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
  "open_by_handle_at": (304, 265), "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51),
  # shared memory and queues that outlive the process, keys, the kernel
  "memfd_create": (319, 279), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
  "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217),
  "userfaultfd": (323, 282), "perf_event_open": (298, 241), "reboot": (169, 142), "swapon": (167, 224),
}  # fmt: skip
OPENS = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # (its number, which argument says how to open)
CLONE, CLONE3 = (56, 220), (435, 435)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CLONE_THREAD, ENOSYS, EPERM = 0x10000, 38, 1
ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # machine -> (column above, its name in the kernel)

LOAD, EQUAL, ABOVE, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of classic BPF
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCH, ARGUMENTS = 0, 4, 16  # offsets in what the filter is shown


def instructions(column: int, arch: int) -> list:
  """The filter, as (code, if true, if false, value) of classic BPF; jumps count instructions to skip."""
  refuse, allow = (RETURN, 0, 0, REFUSE | EPERM), (RETURN, 0, 0, ALLOW)
  found = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
  found += [(ABOVE, 0, 1, 0x40000000), refuse]  # the numbers of x32
  for numbers in REFUSED.values():
    if numbers[column] is not None:
      found += [(EQUAL, 0, 1, numbers[column]), refuse]
  for numbers, argument in OPENS.values():
    if numbers[column] is not None:
      found += [(EQUAL, 0, 4, numbers[column]), (LOAD, 0, 0, ARGUMENTS + 8 * argument), (ANY_BIT, 0, 1, WRITING)]
      found += [refuse, allow]
  found += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, REFUSE | ENOSYS)]  # libraries then use clone
  found += [(EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, ARGUMENTS), (ANY_BIT, 1, 0, CLONE_THREAD), refuse, allow]
  return [*found, allow]


def give_up_rights(limits: dict) -> None:
  """Sets limits, then the filter; nothing of it can be taken back. OSError where the system has no such filter."""
  column, arch = ARCHES[platform.machine()]
  libc = ctypes.CDLL(None, use_errno=True)
  libc.prctl(1, 9, 0, 0, 0)  # dies with the process that started it
  resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"]))
  for kind, key in ((resource.RLIMIT_AS, "memory_bytes"), (resource.RLIMIT_FSIZE, "file_bytes")):
    resource.setrlimit(kind, (limits[key], limits[key]))
  resource.setrlimit(resource.RLIMIT_NOFILE, (limits["files"], limits["files"]))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  if libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)):  # of version 3, this process: root's rights, all of them
    raise OSError(ctypes.get_errno(), "rights can't be given up")
  code = b"".join(struct.pack("HBBI", *one) for one in instructions(column, arch))

  class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

  program = Program(len(code) // 8, code)
  if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    raise OSError(ctypes.get_errno(), "no filter of system calls")


def main() -> None:
  limits, told = json.loads(sys.argv[1]), sys.stdin.buffer.read().decode()
  word, program = told.split("\n", 1)
  verdict, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
  for number in (0, 1, 2):
    os.dup2(nothing, number)
  del sys.argv[1:]
  give_up_rights(limits)
  try:
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    os.write(verdict, word.encode())
  finally:
    os._exit(0)  # without waiting for its threads; the word alone tells that it came to its end


if __name__ == "__main__":
  main()

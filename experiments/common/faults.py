"""Explain faults of the operating system to the user in one line."""

from __future__ import annotations

import errno
import os

FIXES = {
    errno.ENOSPC: "free some space, then run it again",
    errno.EDQUOT: "free some of your quota, then run it again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run it again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write, or change its permissions",
    errno.EPERM: "choose a folder that you may write, or change its permissions",
    errno.EIO: "check the disk, then run it again",
    errno.ESTALE: "check the network file system, then run it again",
    errno.ENODEV: "check that the disk is mounted, then run it again",
    errno.ENOENT: "check whether something removed it while the run was under way",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.EEXIST: "check the path",
    errno.ELOOP: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs' files",
    errno.EBUSY: "check what else uses it",
}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)


def explain_fault(error: OSError) -> str | None:
    """Return one line that names the path, if it is known, or None for errors that concern no disk or path."""
    if error.errno not in FIXES or (error.filename is None and error.errno not in DISK):
        return None
    where = "disk" if error.filename is None else os.fsdecode(error.filename)
    why = error.strerror or os.strerror(error.errno)
    return f"{where}: expected a path that can be read and written, got {why!r}; {FIXES[error.errno]}"

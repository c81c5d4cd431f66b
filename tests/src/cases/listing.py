"""Prints what a directory tree is, a line for each name: type, mode, owner, size, time, links, attributes, content."""

import errno
import hashlib
import os
import stat
import sys

top = os.fsencode(sys.argv[1])
first_name = {}


def describe(path, name):
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    parts = [oct(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime)]
    if kind == stat.S_IFREG:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        # All names of one file lead to the first of them.
        parts += [status.st_size, digest.hexdigest(), first_name.setdefault(status.st_ino, name)]
    elif kind == stat.S_IFLNK:
        parts.append(os.readlink(path))
    elif kind in (stat.S_IFBLK, stat.S_IFCHR):
        parts.append((os.major(status.st_rdev), os.minor(status.st_rdev)))
    try:
        attributes = [(a, os.getxattr(path, a, follow_symlinks=False)) for a in sorted(os.listxattr(path, follow_symlinks=False))]
    except OSError as error:
        # Some kernels are built without those of SquashFS.
        if error.errno != errno.ENOTSUP:
            raise
        attributes = []
    return f"{name!r} {parts} {attributes}"


names = [b"."]
for directory, directories, files in os.walk(top):
    inner = os.path.relpath(directory, top)
    names += [os.path.normpath(os.path.join(inner, name)) for name in directories + files]
for name in sorted(names):
    print(describe(os.path.join(top, name), name))

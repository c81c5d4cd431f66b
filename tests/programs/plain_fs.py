#!/usr/bin/env python3
"""plain_fs.py BELOW POINT: shows the directory BELOW at POINT as a file system that can little: it has no hard links, no
rename that refuses to replace, no files without a name, no attributes and no symbolic links, like FUSE servers of object stores.

Speaks the protocol of fuse(4) itself, so that nothing decides by version what it can. Needs root. Prints "ready" when it is
mounted, and ends when it is unmounted.
"""

import ctypes
import errno
import os
import stat
import struct
import sys

FORGET, BATCH_FORGET, INTERRUPT, DESTROY = 2, 42, 36, 38
ROOT = 1
MAX_WRITE = 128 * 1024


class Server:
    def __init__(self, below):
        self.paths, self.nodes = {ROOT: below}, {below: ROOT}
        self.calls = {
            1: self.lookup, 3: self.getattr, 4: self.setattr, 9: self.mkdir, 10: self.unlink, 11: self.rmdir,
            12: self.rename, 14: self.open, 15: self.read, 16: self.write, 17: self.statfs, 18: self.release,
            20: self.fsync, 25: self.nothing, 26: self.init, 27: self.nothing_open, 28: self.readdir,
            29: self.nothing, 30: self.nothing, 35: self.create,
        }

    def node(self, path):
        if path not in self.nodes:
            self.nodes[path] = max(self.paths) + 1
            self.paths[self.nodes[path]] = path
        return self.nodes[path]

    def attr(self, path):
        s = os.lstat(path)
        seconds = [int(s.st_atime), int(s.st_mtime), int(s.st_ctime)]
        return struct.pack("<6Q10I", s.st_ino, s.st_size, s.st_blocks, *seconds, 0, 0, 0, s.st_mode, s.st_nlink,
                           s.st_uid, s.st_gid, 0, 4096, 0)

    def entry(self, path):
        return struct.pack("<QQQQII", self.node(path), 0, 0, 0, 0, 0) + self.attr(path)

    def child(self, node, name):
        return os.path.join(self.paths[node], name.rstrip(b"\0").decode("utf-8", "surrogateescape"))

    def init(self, node, who, data):
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, MAX_WRITE, 0, 16, 12, MAX_WRITE, 1, 0, 0, 0, *[0] * 7)

    def lookup(self, node, who, data):
        return self.entry(self.child(node, data))

    def getattr(self, node, who, data):
        return struct.pack("<QII", 0, 0, 0) + self.attr(self.paths[node])

    def setattr(self, node, who, data):
        fields = struct.unpack("<IIQQQQQQIIIIIIII", data[:88])
        valid, size, atime, mtime, mode, uid, gid = (fields[i] for i in (0, 3, 5, 6, 11, 13, 14))
        path = self.paths[node]
        if valid & 1:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(path, size)
        if valid & (16 | 32):
            now = os.lstat(path)
            atime = atime if valid & 16 and not valid & 128 else now.st_atime
            mtime = mtime if valid & 32 and not valid & 256 else now.st_mtime
            os.utime(path, (atime, mtime))
        return self.getattr(node, who, data)

    def mkdir(self, node, who, data):
        mode, _ = struct.unpack("<II", data[:8])
        path = self.child(node, data[8:])
        os.mkdir(path)
        os.chmod(path, stat.S_IMODE(mode))
        os.chown(path, *who)
        return self.entry(path)

    def unlink(self, node, who, data):
        path = self.child(node, data)
        os.unlink(path)
        self.nodes.pop(path, None)

    def rmdir(self, node, who, data):
        path = self.child(node, data)
        os.rmdir(path)
        self.nodes.pop(path, None)

    def rename(self, node, who, data):
        (to,) = struct.unpack("<Q", data[:8])
        old, new = data[8:].rstrip(b"\0").split(b"\0")
        old, new = self.child(node, old), self.child(to, new)
        os.rename(old, new)
        self.nodes.pop(new, None)
        for number, path in list(self.paths.items()):
            if path == old or path.startswith(old + "/"):
                self.nodes.pop(path, None)
                moved = new + path[len(old):]
                self.paths[number], self.nodes[moved] = moved, number

    def opened(self, fd):
        return struct.pack("<QII", fd, 0, 0)

    def nothing(self, node, who, data):
        return b""

    def nothing_open(self, node, who, data):
        return self.opened(0)

    def open(self, node, who, data):
        (flags,) = struct.unpack("<I", data[:4])
        return self.opened(os.open(self.paths[node], flags & (os.O_ACCMODE | os.O_TRUNC)))

    def create(self, node, who, data):
        flags, mode = struct.unpack("<II", data[:8])
        path = self.child(node, data[16:])
        fd = os.open(path, flags & (os.O_ACCMODE | os.O_TRUNC | os.O_EXCL) | os.O_CREAT)
        os.fchmod(fd, stat.S_IMODE(mode))
        os.fchown(fd, *who)
        return self.entry(path) + self.opened(fd)

    def read(self, node, who, data):
        fd, offset, size = struct.unpack("<QQI", data[:20])
        return os.pread(fd, size, offset)

    def write(self, node, who, data):
        fd, offset, size = struct.unpack("<QQI", data[:20])
        return struct.pack("<II", os.pwrite(fd, data[40:40 + size], offset), 0)

    def release(self, node, who, data):
        os.close(struct.unpack("<Q", data[:8])[0])

    def fsync(self, node, who, data):
        os.fsync(struct.unpack("<Q", data[:8])[0])

    def statfs(self, node, who, data):
        s = os.statvfs(self.paths[node])
        return struct.pack("<5Q4I6I", s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, 255,
                           s.f_frsize, 0, *[0] * 6)

    def readdir(self, node, who, data):
        _, offset, size = struct.unpack("<QQI", data[:20])
        names, answer = [".", ".."] + sorted(os.listdir(self.paths[node])), b""
        for at, name in enumerate(names[offset:], offset + 1):
            name = name.encode("utf-8", "surrogateescape")
            one = struct.pack("<QQII", at, at, len(name), 0) + name + b"\0" * (-len(name) % 8)
            if len(answer) + len(one) > size:
                break
            answer += one
        return answer

    def serve(self, device):
        while True:
            try:
                request = os.read(device, MAX_WRITE + 65536)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                raise
            _, code, unique, node, uid, gid = struct.unpack("<IIQQII", request[:32])
            if code in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            answer, failure = b"", 0
            try:
                call = self.calls.get(code)
                if call is None:
                    failure = 0 if code == DESTROY else errno.ENOSYS
                else:
                    answer = call(node, (uid, gid), request[40:]) or b""
            except OSError as error:
                answer, failure = b"", error.errno
            try:
                os.write(device, struct.pack("<IiQ", 16 + len(answer), -failure, unique) + answer)
            except OSError as error:
                # Whoever asked has gone meanwhile.
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise


def main():
    below, point = os.path.realpath(sys.argv[1]), sys.argv[2]
    os.umask(0)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"plain", point.encode(), b"fuse.plain", 0, options.encode()):
        sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    print("ready", flush=True)
    Server(below).serve(device)


main()

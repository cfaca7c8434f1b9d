"""A mount.nfs for kernels without an NFS client: NFS version 3 over TCP (RFC 1813), shown to the kernel by FUSE.

Runs inside the lab's machines, on nothing but Debian's own Python and python3-fusepy; the template installs it.
"""

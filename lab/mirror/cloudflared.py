"""The package `cloudflared` of the lab: the connector of its emulated edge, under the name that it stands in for."""

from pathlib import Path

import lab.edge
from lab.mirror.debs import Package, Repository
from lab.mirror.signing import SigningKey

EDGE = Path(lab.edge.__file__).parent
MODULES = ("__init__.py", "frames.py", "connector.py")
PROGRAM = '#!/bin/sh\nPYTHONPATH=/usr/lib/haproof exec python3 -m edge.connector "$@"\n'
PACKAGE = Package(
    "cloudflared",
    "0.1",
    "connector of the emulated edge of the haproof lab",
    {},
    files={
        "usr/bin/cloudflared": PROGRAM,
        **{f"usr/lib/haproof/edge/{name}": (EDGE / name).read_text() for name in MODULES},
    },
    depends=("python3", "python3-h11", "python3-websockets"),
)
CLOUDFLARED = Repository("cloudflare/deb", (PACKAGE,), "cloudflare-packages", (SigningKey(),))

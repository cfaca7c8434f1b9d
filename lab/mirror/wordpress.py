"""The image `wordpress`, with upstream's contract, of Debian's own WordPress, Apache and PHP."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.cache import Progress, Recipe
from lab.mirror import apt, versions
from lab.mirror.bootstrap import bootstrap, keep_licences
from lab.mirror.command import run

FILES = Path(__file__).parent / "wordpress_image"
PACKAGES = (
    "apache2",
    "libapache2-mod-php",
    "php-curl",
    "php-gd",
    "php-mbstring",
    "php-mysql",
    "php-xml",
    "util-linux",
    "wordpress",
    "wordpress-theme-twentytwentythree",
)
DPKG_OPTIONS = tuple(f"path-exclude=/usr/share/{folder}/*" for folder in ("man", "locale", "info", "doc-base"))
PLACES = {
    "entrypoint.sh": "usr/local/bin/docker-entrypoint.sh",
    "wp-config.php": "usr/src/wp-config.php",
    "site.conf": "etc/apache2/sites-available/000-default.conf",
    "prefork.conf": "etc/apache2/conf-enabled/haproof.conf",
    "php.ini": "etc/php/8.2/apache2/conf.d/90-haproof.ini",
}
# What WordPress's package asks for, and a replica does not: clients of databases, kernels' and terminals' data.
WASTE = (
    "usr/bin/mariadb*",
    "usr/bin/my*",
    "usr/lib/udev",
    "usr/share/perl",
    "usr/share/mysql",
    "usr/share/wordpress",
    "var/cache",
    "var/lib/apt",
    "var/lib/wordpress",
    "var/www/html/*",
)


@dataclass(frozen=True)
class WordPress:
    """The image's files in `root/`."""

    name: str = "wordpress"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """The packages, our files, and what is thrown away."""
        suites = [source.suite for source in apt.sources(versions.DEBIAN)]
        texts = {path.name: path.read_text() for path in sorted(FILES.iterdir())}
        return json.dumps([PACKAGES, DPKG_OPTIONS, PLACES, WASTE, texts, suites]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Install the packages, lay WordPress out as upstream's image has it, and leave out what nothing needs."""
        root = into / "root"
        bootstrap(root, PACKAGES, variant="essential", dpkg_options=DPKG_OPTIONS)
        progress("bootstrapped WordPress")
        # Debian's package is a web of links, which the copy in a volume must not have.
        run(["chroot", root, "cp", "-rL", "/usr/share/wordpress", "/usr/src/wordpress"])
        for name in ("wp-config.php", "wp-config-sample.php"):
            (root / "usr/src/wordpress" / name).unlink(missing_ok=True)
        run(["chroot", root, "a2enmod", "-q", "rewrite"])
        keep_licences(root, into / "licences")
        for pattern in WASTE:
            for path in root.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for name, place in PLACES.items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(FILES / name, root / place)
        (root / PLACES["entrypoint.sh"]).chmod(0o755)

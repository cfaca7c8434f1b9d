"""The root of the image `wordpress`: Debian's WordPress behind the contract of the upstream image.

The same variables, the same paths, the same start: it copies itself into an empty /var/www/html. Its own part, the
files in `modules/wordpress/`, is made for a volume that several replicas share over a network.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.cache import Progress, Recipe
from lab.mirror import apt, versions
from lab.mirror.bootstrap import bootstrap, keep_licences
from lab.mirror.command import run

SOURCES = Path(__file__).parent / "modules" / "wordpress"
PACKAGES = (
    "apache2",
    "ca-certificates",
    "libapache2-mod-php",
    "php-curl",
    "php-gd",
    "php-mbstring",
    "php-mysql",
    "php-xml",
    "php-zip",
    "wordpress",
    # Without a theme there is no front page. Of the packaged ones the one that costs least: those of blocks read some
    # fifty files for each page, and would make of every measurement one of the theme.
    "wordpress-theme-twentytwentyone",
)
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
# Where each of our files goes, and its mode.
FILES = {
    "docker-entrypoint.sh": ("usr/local/bin/docker-entrypoint.sh", 0o755),
    "apache2-foreground": ("usr/local/bin/apache2-foreground", 0o755),
    "wp-config-docker.php": ("usr/src/wordpress/wp-config-docker.php", 0o644),
    "apache.conf": ("etc/apache2/conf-enabled/wordpress.conf", 0o644),
    "php.ini": ("etc/php/8.2/apache2/conf.d/90-wordpress.ini", 0o644),
}
# What WordPress's package asks for and a web server does not: the database's clients, and Perl, in which they and
# apache2's own a2enmod are written.
UNUSED = (
    "default-mysql-client",
    "libmariadb3",
    "libperl5.36",
    "mariadb-client",
    "mariadb-client-core",
    "perl",
    "perl-modules-5.36",
)
WASTE = (
    "usr/share/bash-completion",
    "usr/share/lintian",
    "usr/share/wordpress",
    "var/cache",
    "var/lib/apt",
    "var/log",
)
# WordPress is of one piece, as upstream has it: Debian's links to what other packages ship are followed, and its own
# configuration is left out. The server opens its logs as /dev/stdout and /dev/stderr.
SETUP = """\
set -eu
a2enmod --quiet expires rewrite
a2dismod --quiet --force autoindex negotiation status
a2disconf --quiet other-vhosts-access-log serve-cgi-bin
a2dissite --quiet 000-default
dpkg --purge --force-depends {unused}
mkdir -p /usr/src
cp -RL /usr/share/wordpress /usr/src/wordpress
rm -f /usr/src/wordpress/wp-config.php /usr/src/wordpress/.htaccess
rm -rf {waste} /var/www/html
install -d /var/log /var/log/apache2 /var/cache
install -d -o www-data -g www-data /var/www/html
"""


@dataclass(frozen=True)
class WordPress:
    """The image's files in `root/`."""

    name: str = "wordpress"
    needs: Sequence[Recipe] = field(default=())

    def inputs(self) -> bytes:
        """The packages and our own files; not the archive's state of the day: prune to have a newer one."""
        suites = [source.suite for source in apt.sources(versions.DEBIAN)]
        own = {name: ((SOURCES / name).read_text(), place) for name, place in FILES.items()}
        return json.dumps([PACKAGES, DPKG_OPTIONS, own, UNUSED, WASTE, SETUP, suites]).encode()

    def build(self, into: Path, made: Mapping[str, Path], progress: Progress) -> None:
        """Bootstrap from the machine's own apt sources, leave out what is not used, and put our files there."""
        root = into / "root"
        bootstrap(root, PACKAGES, variant="minbase", dpkg_options=DPKG_OPTIONS)
        progress("bootstrapped WordPress")
        keep_licences(root, into / "licences")
        waste = " ".join(f"/{path}" for path in WASTE)
        run(["chroot", root, "sh", "-c", SETUP.format(unused=" ".join(UNUSED), waste=waste)])
        for name, (path, mode) in FILES.items():
            shutil.copyfile(SOURCES / name, root / path)
            (root / path).chmod(mode)

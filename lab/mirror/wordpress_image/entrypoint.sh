#!/bin/bash
# Fills an empty /var/www/html with WordPress and its configuration, then serves it.
#
# Replicas share that folder and start at once: one copies, the others wait; should it die over it, another goes on.
set -euo pipefail
site=/var/www/html
source=/usr/src/wordpress
lease=$site/.copying
LEASE_S=20 # a copier that has not said anything for this long is dead

# As the upstream image: every setting may come from a file instead.
for name in DB_HOST DB_USER DB_PASSWORD DB_NAME TABLE_PREFIX CONFIG_EXTRA; do
    file=WORDPRESS_${name}_FILE
    if [ -n "${!file:-}" ]; then export "WORDPRESS_$name=$(<"${!file}")"; fi
done

as_site() { setpriv --reuid=33 --regid=33 --clear-groups "$@"; }
say() { echo "wordpress: $*" >&2; }

# Says every second that it is alive, until the copier who started it is gone.
beat() {
    local count=0
    while [ -d "/proc/$1" ]; do
        echo "$HOSTNAME $((count += 1))" >"$lease/holder" 2>/dev/null || return 0
        sleep 1
    done
}

copy() {
    say "copying WordPress into $site"
    beat $$ &
    # What an earlier copier left half-done is written over; index.php says that all is there, so it comes last.
    (cd "$source" && find . -mindepth 1 -type d -print0) | (cd $site && as_site xargs -0 mkdir -p)
    (cd "$source" && find . -type f -not -path ./index.php -print0) |
        (cd "$source" && as_site xargs -0 -P 4 -n 100 cp --parents -t $site)
    as_site cp $source/index.php $site/.index.php
    as_site mv $site/.index.php $site/index.php
    as_site rm -rf "$lease"
    say "copied"
}

if [ ! -e $site/index.php ] && ! as_site test -w $site; then
    say "$site cannot be written by uid 33: give the volume to it (chown 33:33 on the file server)"
    exit 1
fi
seen='' since=$SECONDS
until [ -e $site/index.php ]; do
    if as_site mkdir "$lease" 2>/dev/null; then
        copy
        break
    fi
    now=$(cat "$lease/holder" 2>/dev/null || true)
    if [ "$now" != "$seen" ]; then
        seen=$now since=$SECONDS
    elif ((SECONDS - since > LEASE_S)); then
        say "${seen:-nobody} has stopped copying; going on"
        as_site mv "$lease" "$lease.$HOSTNAME" 2>/dev/null && as_site rm -rf "$lease.$HOSTNAME"
        since=$SECONDS
    fi
    sleep 1
done

# One set of salts for all replicas: whoever links its file first has made it for everybody.
if [ ! -e $site/wp-config.php ]; then
    draft=$site/.wp-config.$HOSTNAME
    php /usr/src/wp-config.php >/tmp/wp-config.php
    as_site cp /tmp/wp-config.php "$draft"
    as_site ln "$draft" $site/wp-config.php 2>/dev/null || say "another replica has made wp-config.php"
    as_site rm -f "$draft"
    rm /tmp/wp-config.php
fi

set +u
. /etc/apache2/envvars
mkdir -p "$APACHE_RUN_DIR" "$APACHE_LOCK_DIR"
rm -f "$APACHE_PID_FILE"
exec "$@"

#!/bin/sh
# Puts WordPress into an empty /var/www/html, as the upstream image does, then runs the command it is given.
#
# Replicas that share a volume may start all at once, and each of them may be killed at any moment. So one does the
# work, behind a lock that it keeps alive by a beat; a lock whose beat has stopped is taken over. Nothing depends on
# there being only one: each lays everything out in a folder of its own and moves it into place, whole, where there
# is nothing yet.
set -eu
export LC_ALL=C
umask 022

volume=/var/www/html
lock=$volume/.wordpress-lock
me=$(hostname)-$(cut -d - -f 1 /proc/sys/kernel/random/uuid)
own=$volume/.wordpress-$me
beats_missed_max=20 # a second each; a client of NFS may show a beat some seconds late

fail() {
    echo >&2 "WordPress cannot be put into $volume: $*"
    exit 1
}

seeded() {
    [ -e $volume/wp-includes/version.php ] && [ -e $volume/index.php ] && { [ -s $volume/wp-config.php ] || ! configured; }
}

configured() {
    env | grep -q '^WORDPRESS_'
}

# Moves what is in folder $1 into folder $2, each entry at once; what is there already stays as it is.
place() {
    for from in "$1"/* "$1"/.[!.]*; do
        to=$2/${from##*/}
        if [ ! -e "$from" ] || [ "$to" = "$volume/index.php" ]; then
            continue # index.php comes last: it says that the rest is there
        elif [ -d "$from" ] && [ -d "$to" ]; then
            (place "$from" "$to")
        elif [ ! -e "$to" ]; then
            error=$(mv -T "$from" "$to" 2>&1) || [ -e "$to" ] || fail "$error"
        fi
    done
}

# What the lock says: whose it is, and its beat.
seen() {
    cat "$1/owner" "$1/beat" 2>/dev/null || true
}

take_lock() {
    told='' missed=0
    until error=$(mkdir $lock 2>&1) && { echo "$me" >$lock/owner; } 2>/dev/null; do
        case $error in '' | *'File exists'*) ;; *) fail "${error#mkdir: }" ;; esac
        last=$told
        told=$(seen $lock)
        if [ "$told" != "$last" ]; then missed=0; else missed=$((missed + 1)); fi
        if [ $missed -ge $beats_missed_max ]; then
            missed=0
            if mv -T $lock "$own.stale" 2>/dev/null; then
                # Another one that waited may have been quicker: then this is its lock, and it gets that back.
                [ "$(seen "$own.stale")" = "$told" ] || mv -T "$own.stale" $lock 2>/dev/null || true
                rm -rf "$own.stale"
                echo >&2 "whoever was putting WordPress into $volume has ended; going on with it"
            fi
        fi
        sleep 1
    done
    count=0
    while kill -0 $$ 2>/dev/null; do
        { echo $count >$lock/beat; } 2>/dev/null || true
        count=$((count + 1))
        sleep 1
    done &
    beating=$!
    trap release EXIT
}

release() {
    kill $beating 2>/dev/null || true
    [ "$(cat $lock/owner 2>/dev/null)" != "$me" ] || rm -rf $lock
    rm -rf "$own"
}

seed() {
    take_lock
    seeded && return
    for left in $volume/.wordpress-*; do
        [ "$left" = $lock ] || rm -rf "$left" # of those who were killed
    done
    mkdir "$own"
    if [ ! -e $volume/wp-includes/version.php ] || [ ! -e $volume/index.php ]; then
        echo >&2 "putting WordPress into $volume"
        cp -R /usr/src/wordpress "$own/files" || fail 'copying failed'
        rm "$own/files/wp-config-docker.php"
        place "$own/files" $volume
        [ -e $volume/index.php ] || mv -T "$own/files/index.php" $volume/index.php
    fi
    if [ ! -s $volume/wp-config.php ] && configured; then
        # One set of keys for all replicas: a session that one began is valid on the others.
        while IFS= read -r line; do
            case $line in
                *'put your unique phrase here'*)
                    phrase=$(head -c 48 /dev/urandom | base64 -w 0)
                    line=${line%%put your*}$phrase${line##*phrase here}
                    ;;
            esac
            printf '%s\n' "$line"
        done </usr/src/wordpress/wp-config-docker.php >"$own/wp-config.php"
        chmod 600 "$own/wp-config.php"
        [ ! -e $volume/wp-config.php ] || rm $volume/wp-config.php # an empty one
        # A link, for it never replaces what another has put there meanwhile.
        ln "$own/wp-config.php" $volume/wp-config.php 2>/dev/null || [ -s $volume/wp-config.php ] ||
            fail 'wp-config.php cannot be linked'
    fi
    echo >&2 "WordPress is in $volume"
}

case ${1-} in
    --seed)
        seed
        exit
        ;;
    apache2*)
        if ! seeded; then
            # The server of the volume need not take root for root; it takes www-data for the owner of the files.
            if [ "$(id -u)" = 0 ]; then
                setpriv --reuid=www-data --regid=www-data --init-groups "$0" --seed
            else
                "$0" --seed
            fi
        fi
        ;;
esac
exec "$@"

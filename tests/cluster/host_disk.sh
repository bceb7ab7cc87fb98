#!/bin/sh
# What of a host outlives its reboots: its namespaces for files, network and name, and its disk. Runs in fresh
# namespaces; says "ready", and keeps them until its stdin ends.
#
#   host_disk.sh FOLDER HOSTNAME PYTHON [PATH...]
#
# The disk is a RAM disk at /srv, with its HOME in /srv/home. All else is the machine's, read-only: FOLDER/etc has what
# the host has of its own, PYTHON is its python3 (empty: it has none), and each PATH, a folder, is seen on the host too.
set -eu
folder=$1 hostname=$2 python=$3
shift 3

echo "$hostname" > /proc/sys/kernel/hostname
mount -t tmpfs -o mode=755 disk "$folder/disk"
cd "$folder/disk"
mkdir bin shared
mkdir -m 700 home home/.ssh
cp -r "$folder/etc" .
if [ -e etc/authorized_keys ]; then cp etc/authorized_keys home/.ssh/; fi
# Every command but Python, so that PATH has no other than the one that it was given.
ln -s /usr/sbin/* bin
ln -sf /usr/bin/* bin
rm -f bin/python* bin/pip*
if [ -n "$python" ]; then ln -s "$python" bin/python3; fi
for path; do
  mkdir -p "shared$path"
  mount --bind "$path" "shared$path"
  mount -o remount,bind,ro "shared$path"
done
cd /
mount --move "$folder/disk" /srv
for file in passwd shadow hosts; do mount --bind "/srv/etc/$file" "/etc/$file"; done
mount -o remount,bind,ro /

echo ready
exec cat > /dev/null

#!/bin/sh
# The first process of a host that boots: empties what does not outlive a reboot, says "ready", and runs sshd. Its end is
# the host's: the kernel kills all that runs there. Runs in a fresh pid namespace, on what host_disk.sh has made.
#
#   host_boot.sh BOOT_ID [PATH...]
set -eu
boot_id=$1
shift

mount -t proc proc /proc
if [ -e /run/booted ]; then umount --lazy /tmp /run /dev/shm /sys; fi
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir /run/sshd
touch /run/booted
echo "$boot_id" > /run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
for path; do
  mkdir -p "$path"
  mount --rbind "/srv/shared$path" "$path"
done

/usr/sbin/sshd -D -e -f /srv/etc/sshd_config 2>> /srv/sshd.log &
echo ready
exec > /dev/null
wait # for sshd; what others leave behind is reaped too

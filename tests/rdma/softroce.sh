#!/usr/bin/env bash
# Run a command on a machine that has two software RDMA devices (Soft-RoCE), without any of the host's own.
#
#   tests/rdma/softroce.sh COMMAND [ARG...]
#
# Boots Debian's stock kernel in QEMU (software emulation: everything is some 10 to 20 times slower than on the host) with
# this host's file system as its root: read-only below, a RAM overlay above, so that what the command writes is gone
# afterwards, but for $OUT, a folder that both sides see. Inside, rxe0 lies on dummy0 (10.99.0.1) and rxe1 on dummy1
# (10.99.1.1). Each reaches itself, so that two processes are two hosts with two NICs each, on two networks.
#
# Prints the command's output and exits with its status; 125 when the machine did not finish in time, 124 when something
# that it needs is not installed.
# Settings: MEM_MB (2048), CPUS (2), TIMEOUT_S (300), OUT (a temporary folder), PASS_ENV (names of variables to pass on).
set -euo pipefail

packages="qemu-system-x86 linux-image-amd64 busybox-static rdma-core ibverbs-utils python3-pyverbs cpio kmod"
[ $# -gt 0 ] || { sed -n 2,14p "$0"; exit 2; }
# linux-image-cloud-amd64 has no rdma_rxe.
release=$(basename "$(ls -d /lib/modules/*/kernel/drivers/infiniband/sw/rxe 2>/dev/null | head -1 | sed 's|/kernel/.*||')")
if [ -z "$release" ] || [ ! -x /bin/busybox ] || ! command -v qemu-system-x86_64 cpio modprobe rdma > /dev/null ||
  [ ! -e /usr/lib/python3/dist-packages/pyverbs ]; then
  echo "softroce: needs apt-get install --no-install-recommends $packages" >&2
  exit 124
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${OUT:-$work/out}
mkdir -p "$out" "$work"/ird/{bin,mods,proc,sys,dev,root}
rm -f "$out/.rc" "$out/.log"

cp /bin/busybox "$work/ird/bin/"
number=100
for module in virtio_pci 9pnet_virtio 9p overlay; do modprobe -S "$release" --show-depends "$module"; done |
  awk '/^insmod/ && !seen[$2]++ {print $2}' |
  while read -r file; do
    cp "$file" "$work/ird/mods/$number-$(basename "$file")"
    number=$((number + 1))
  done

cat > "$work/ird/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in /mods/*; do $b insmod "$module"; done
$b mkdir -p /lower /rw
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /lower || exec $b poweroff -f
$b mount -t tmpfs -o size=75% rw /rw
$b mkdir -p /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /root
for folder in proc sys dev; do $b mount --move /$folder /root/$folder; done
$b mkdir -p /root/mnt/softroce
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 out /root/mnt/softroce
exec $b switch_root /root /bin/bash /mnt/softroce/.guest.sh
INIT
chmod +x "$work/ird/init"
(cd "$work/ird" && find . | cpio -o -H newc 2>/dev/null | gzip -1 > "$work/initrd.gz")

{
  cat <<'GUEST'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root OUT=/mnt/softroce
mkdir -p /run /dev/shm /dev/pts
mount -t tmpfs run /run; mount -t tmpfs shm /dev/shm; mount -t devpts pts /dev/pts
ip link set lo up
modprobe -a rdma_rxe ib_uverbs dummy
for n in 0 1; do
  ip link add dummy$n type dummy
  ip link set dummy$n mtu 4200 up
  ip addr add 10.99.$n.1/24 dev dummy$n
  rdma link add rxe$n type rxe netdev dummy$n
done
ulimit -l unlimited
GUEST
  printf 'cd %q\n' "$PWD"
  for name in ${PASS_ENV:-}; do printf 'export %s=%q\n' "$name" "${!name-}"; done
  printf '%q ' "$@"
  printf '>/mnt/softroce/.log 2>&1\necho $? >/mnt/softroce/.rc\nsync\nbusybox poweroff -f\n'
} > "$out/.guest.sh"

timeout -k 5 "${TIMEOUT_S:-300}" qemu-system-x86_64 \
  -accel tcg,thread=multi -cpu max -smp "${CPUS:-2}" -m "${MEM_MB:-2048}" -nographic -no-reboot -net none \
  -kernel "/boot/vmlinuz-$release" -initrd "$work/initrd.gz" -append "console=ttyS0 panic=-1 quiet mitigations=off transparent_hugepage=never" \
  -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
  -virtfs local,path="$out",mount_tag=out,security_model=none > "$work/console" 2>&1 < /dev/null || true

[ ! -f "$out/.log" ] || cat "$out/.log"
if [ ! -f "$out/.rc" ]; then
  tail -20 "$work/console" >&2
  echo "softroce: the machine did not finish within ${TIMEOUT_S:-300} s" >&2
  exit 125
fi
exit "$(cat "$out/.rc")"

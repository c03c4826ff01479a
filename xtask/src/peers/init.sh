#!/bin/busybox sh
# The guest's first process: mounts what programs expect, brings the network up and runs the test's script. The last
# line it prints tells the test how that ended.
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
hostname guest
ip link set lo up
if modprobe virtio_net && [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    ip address add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
fi
dmesg -c >/dev/null

if sh -eu /script; then
    echo ISTHMUS-OK
else
    echo "ISTHMUS-FAIL $?"
    dmesg | tail -n 40
fi
sync
poweroff -f

# What every guest script may use.

# Tells the test that this point is reached.
mark() { echo "ISTHMUS-MARK $1"; }

# Tells the test that this point is reached and prints its answer.
ask() {
    mark "$1" >/dev/ttyS0
    read -r answer
    echo "$answer"
}

# Writes a block device at random places and reads all back, each block with its checksum: verify DEVICE SIZE
verify() {
    [ -b "$1" ] || { echo "$1 is no disk"; return 1; }
    for round in $(seq "$ROUNDS"); do
        fio --name=verify --filename="$1" --size="$2" --rw=randwrite --bsrange=4k-64k --iodepth=16 --ioengine=libaio \
            --direct=1 --verify=crc32c --verify_fatal=1 --randseed=$((SEED + round)) --eta=never \
            --output=/tmp/fio.log || { cat /tmp/fio.log; return 1; }
    done
    grep -E 'IOPS=' /tmp/fio.log
}

# The disk of a subsystem's namespace; the kernel numbers disks in the order in which it happens to find them:
# disk_of NQN NSID
disk_of() {
    for tries in 1 2 3 4 5 6 7 8 9 10; do
        for disk in /sys/class/nvme-subsystem/*/nvme*n*; do
            if [ "$(cat "${disk%/*}/subsysnqn" 2>/dev/null)" = "$1" ] && [ "$(cat "$disk/nsid" 2>/dev/null)" = "$2" ] &&
                [ -b "/dev/${disk##*/}" ]; then
                echo "/dev/${disk##*/}"
                return
            fi
        done
        sleep 1
    done
    echo "no disk $2 of $1" >&2
    return 1
}

# Makes this kernel an NVMe/TCP target that exports a device to every host: export_nvmet NQN DEVICE
export_nvmet() {
    modprobe nvmet_tcp
    nvmet=/sys/kernel/config/nvmet
    [ -d $nvmet ] || mount -t configfs configfs /sys/kernel/config
    mkdir "$nvmet/subsystems/$1" "$nvmet/subsystems/$1/namespaces/1"
    echo 1 >"$nvmet/subsystems/$1/attr_allow_any_host"
    echo -n "$2" >"$nvmet/subsystems/$1/namespaces/1/device_path"
    echo 1 >"$nvmet/subsystems/$1/namespaces/1/enable"
    if [ ! -d $nvmet/ports/1 ]; then
        mkdir $nvmet/ports/1
        echo tcp >$nvmet/ports/1/addr_trtype
        echo ipv4 >$nvmet/ports/1/addr_adrfam
        echo 10.0.2.15 >$nvmet/ports/1/addr_traddr
        echo 4420 >$nvmet/ports/1/addr_trsvcid
    fi
    ln -s "$nvmet/subsystems/$1" "$nvmet/ports/1/subsystems/$1"
}

# Fails when the kernel complained of a disk: what a correct controller never makes it say.
no_complaint() {
    if dmesg | grep -iE 'nvme.*(timeout|error|fail|invalid|reset|unable|warn)|I/O error|BUG|WARNING|Call Trace'; then
        return 1
    fi
}

# A machine of its own on this kernel: processes, mounts, network and control groups, with systemd as its first process.
# Nothing of the host is written; with this process everything ends.
#
#   machine.sh ROOT CGROUP TOCSIN NATS_SERVER
set -eu
root=$1 cgroup=$2 tocsin=$3 nats_server=$4

for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [ -f "$hierarchy/cgroup.procs" ]; then
        mkdir "$hierarchy/$cgroup"
        echo $$ >"$hierarchy/$cgroup/cgroup.procs"
    fi
done

# shellcheck disable=SC2016
exec unshare --pid --fork --kill-child --mount --net --uts --ipc -- sh -eu -c '
root=$1 tocsin=$2 nats_server=$3
mount --make-rprivate /
cd "$root"
mount --bind . .
cd "$root"
mkdir -p usr sys dev proc run tmp home root old var/lib
for link in bin sbin lib lib64; do
    [ ! -L "/$link" ] || cp -a "/$link" .
done
mount --rbind /usr usr
mount -o remount,bind,ro usr
# Of the kernel only the control groups can be changed.
mount --rbind /sys sys
mount -o remount,bind,ro sys
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --rbind /dev dev
mount -o remount,bind,ro dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs usr/local/bin
for program in tocsin nats-server; do : >"usr/local/bin/$program"; done
mount --bind "$tocsin" usr/local/bin/tocsin
mount --bind "$nats_server" usr/local/bin/nats-server
[ ! -f /etc/ld.so.cache ] || cp /etc/ld.so.cache etc/
pivot_root . old
umount -l old
# As systemd has it on a machine: credentials are mounted for the service to see.
mount --make-rshared /
export container=tocsin-test
exec /lib/systemd/systemd --system --unit=test.target --show-status=no
' sh "$root" "$tocsin" "$nats_server"

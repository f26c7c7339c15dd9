#!/bin/bash
# Process 1 of a guest of `cargo xtask vm`. The root it starts on is the host's, read-only; /media holds what the
# xtask prepared: ctl (this file, the command, its streams and status), out (results), mods (modules), tools.
# It makes that root writable with an overlay in memory, runs the command once and hands back its status.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ctl=/media/ctl
tools=/media/tools/usr
[ -c /dev/zero ] || mount -t devtmpfs dev /dev
mount -t proc proc /proc
. $ctl/settings

if [ "$SHOAL_GUEST" = uml ]; then
  # The root is a hostfs mounted read-only; what is written to needs mounts of its own.
  mount -t tmpfs -o mode=755 media /media
  mkdir /media/ctl /media/out /media/mods /media/tools
  for part in ctl out mods tools; do mount -t hostfs -o /media/$part none /media/$part; done
fi

finish() { # STATUS
  sync
  echo "$1" > $ctl/status.new
  sync
  mv $ctl/status.new $ctl/status
  sync
  busybox poweroff -f
  sleep 60
}
fail() {
  echo "guest: $1" >> $ctl/stderr
  exit 125
}
trap 'finish 125' EXIT
# User-mode Linux that reboots starts over, and would run the command again.
[ ! -e $ctl/booted ] || fail "rebooted"
: > $ctl/booted

# What is written reaches the host within tenths of a second, so that output is seen as it comes.
echo 10 > /proc/sys/vm/dirty_writeback_centisecs
echo 10 > /proc/sys/vm/dirty_expire_centisecs

mount -t tmpfs -o mode=755 build /run
mkdir -p /run/over /run/root
mount -t tmpfs -o mode=755,size=75% over /run/over
mkdir /run/over/upper /run/over/work
mkdir -p /run/over/modules/lib/modules
mount --bind /media/mods /run/over/modules/lib/modules
LD_LIBRARY_PATH=$tools/lib/x86_64-linux-gnu "$tools/sbin/modprobe" -d /run/over/modules overlay ||
  fail "no overlay file system"
new=/run/root
mount -t overlay -o lowerdir=/,upperdir=/run/over/upper,workdir=/run/over/work over $new || fail "no overlay root"

mount --rbind /media $new/media
mount -t proc proc $new/proc
mount -t sysfs sysfs $new/sys
if ! mount -t devtmpfs dev $new/dev 2> /dev/null; then
  mount -t tmpfs -o mode=755 dev $new/dev
  for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 kmsg:1:11; do
    IFS=: read -r name major minor <<< "$node"
    mknod -m 666 "$new/dev/$name" c "$major" "$minor"
  done
fi
mkdir -p $new/dev/pts $new/dev/shm $new/dev/net
[ -e $new/dev/net/tun ] || mknod $new/dev/net/tun c 10 200
[ -e $new/dev/fd ] || ln -s /proc/self/fd $new/dev/fd
for stream in 0:stdin 1:stdout 2:stderr; do
  [ -e $new/dev/${stream#*:} ] || ln -s /proc/self/fd/${stream%:*} $new/dev/${stream#*:}
done
mount -t devpts -o ptmxmode=666 devpts $new/dev/pts
ln -sf pts/ptmx $new/dev/ptmx
mount -t tmpfs -o mode=1777 shm $new/dev/shm
mount -t tmpfs -o mode=755 run $new/run
[ "$SHOAL_KEEP_TMP" = 1 ] || mount -t tmpfs -o mode=1777 tmp $new/tmp
mkdir -p $new/run/netns $new/run/lock $new/lib/modules
mount --bind /media/mods $new/lib/modules
mount -t cgroup2 cgroup2 $new/sys/fs/cgroup
mount -t bpf bpf $new/sys/fs/bpf
mount -t debugfs debugfs $new/sys/kernel/debug 2> /dev/null
mount -t tracefs tracefs $new/sys/kernel/tracing 2> /dev/null
cp -an $tools/. $new/usr/

# A real root and no chroot: the kernel itself looks for modprobe from here, and nsenter -m has to work.
mkdir $new/run/old
cd $new && pivot_root . run/old && cd / || fail "pivot_root"
umount -l /run/old
echo "shoal-$SHOAL_GUEST" > /proc/sys/kernel/hostname
ip link set lo up
# Nobody asks the kernel for these in a way that would make it load them.
modprobe -a -q ip_vs veth bridge vxlan dummy sch_ingress cls_bpf nf_tables
# Loaded by the kernel itself, for a service that asks for them, these two deadlock with a namespace that ends meanwhile:
# they register with all namespaces while ip_vs, which waits for them, holds the lock that ending one takes.
modprobe -a -q ip_vs_lblc ip_vs_lblcr
# Follows the guest's memory otherwise, and a test of short connections fills that at once.
[ ! -e /proc/sys/net/netfilter/nf_conntrack_max ] || echo 1048576 > /proc/sys/net/netfilter/nf_conntrack_max

/bin/bash $ctl/command >> $ctl/stdout 2>> $ctl/stderr < /dev/null
status=$?
trap - EXIT
finish $status

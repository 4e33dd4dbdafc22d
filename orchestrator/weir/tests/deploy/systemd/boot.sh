# Becomes systemd on a copy of this machine's files, which keeps what is written in memory and has none of this machine's units.
#
# WEIR is the executable, UNITS a directory with the units to install; the arguments are pairs of a file and its place.
set -e
# This /proc is still the machine's, and knows this process by the number that others see.
read -r init rest < /proc/self/stat

mount -t tmpfs -o mode=755 tmpfs /mnt
cd /mnt
mkdir upper work root lib etc
# Of Debian's own units what a service without a network manager, devices and disks asks for.
for unit in basic multi-user network-online shutdown sockets sysinit; do
  cp "/lib/systemd/system/$unit.target" lib
done
cp /lib/systemd/system/systemd-journald.service /lib/systemd/system/systemd-journald.socket lib
mkdir lib/sysinit.target.wants lib/none
ln -s ../systemd-journald.service lib/sysinit.target.wants
cp "$UNITS"/* etc

mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
mount -t proc -o nosuid,nodev,noexec proc root/proc
# All settings but those of its own network are this machine's.
mount --bind root/proc/sys root/proc/sys
mount --bind root/proc/sys/net root/proc/sys/net
mount -o remount,bind,ro root/proc/sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs root/sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 root/sys/fs/cgroup
for place in run var usr/local etc/systemd; do mount -t tmpfs -o mode=755 tmpfs "root/$place"; done
mkdir -p root/usr/local/bin root/etc/systemd/system root/var/tmp
for place in tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "root/$place"; done
mount -t tmpfs -o mode=755 tmpfs root/dev
for node in null zero full random urandom tty; do
  touch "root/dev/$node"
  mount --bind "/dev/$node" "root/dev/$node"
done
mkdir root/dev/shm root/dev/pts
mount -t devpts -o newinstance,mode=620,ptmxmode=666 devpts root/dev/pts
ln -s pts/ptmx root/dev/ptmx
mount --bind lib root/lib/systemd/system
mount --bind etc root/etc/systemd/system
for place in system-generators system-environment-generators; do mount --bind lib/none "root/lib/systemd/$place"; done
printf '[Journal]\nStorage=volatile\n' > root/etc/systemd/journald.conf
touch root/usr/local/bin/weir
mount --bind "$WEIR" root/usr/local/bin/weir
while [ $# -gt 0 ]; do
  install -D -m 0600 "$1" "root$2"
  shift 2
done

cd root
mkdir -p run/before
pivot_root . run/before
umount --lazy run/before
rmdir run/before
# As it is where systemd comes first: credentials are mounted in a namespace that this one is to follow.
mount --make-rshared /
echo "$init"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=weir /lib/systemd/systemd --unit=multi-user.target < /dev/null > /dev/null 2>&1

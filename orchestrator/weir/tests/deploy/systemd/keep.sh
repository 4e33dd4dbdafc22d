# Keeps a systemd in a cgroup and namespaces of its own for as long as standard input is open: until the test ends, however it
# ends. Then nothing of it is left.
#
# CGROUP is a name that nobody else has, BOOT what becomes the first process; its arguments are passed on.
mount=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || exit
cgroup=$mount/$CGROUP
mkdir "$cgroup" || exit
(
  echo 0 > "$cgroup/cgroup.procs" || exit
  # What ends its child makes unshare complain.
  exec unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --cgroup \
    sh -c "exec 2>&3 3>&-; $BOOT" boot "$@" 3>&2 2> /dev/null
) &
unshare=$!
# Who reads what the first process says sees its end.
exec > /dev/null
cat
# The kernel ends the others of a PID namespace before its first is gone.
kill -KILL $(cat "/proc/$unshare/task/$unshare/children")
wait "$unshare"
find "$cgroup" -depth -type d -exec rmdir {} +

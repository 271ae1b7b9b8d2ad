#!/usr/bin/env bash
# A SLURM of two nodes on this machine, under the caller's name, everything of it in one folder:
#   tests/slurm/up.sh FOLDER && export SLURM_CONF=FOLDER/slurm.conf
# Stop it with tests/slurm/down.sh FOLDER.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { echo "usage: up.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
mkdir -p "$folder"/{munge,state,spool.node1,spool.node2}
chmod 755 "$folder" "$folder/munge"
if [ ! -s "$folder/munge/key" ]; then
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
fi
read -r -a ports < <(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(3)]
for each in sockets:
    each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
PYTHON
)
sed -e "s#@HOST@#$(hostname -s)#g" -e "s#@USER@#$(id -un)#g" -e "s#@FOLDER@#$folder#g" \
    -e "s#@PORT0@#${ports[0]}#" -e "s#@PORT1@#${ports[1]}#" -e "s#@PORT2@#${ports[2]}#" \
    "$here/slurm.conf.in" >"$folder/slurm.conf"
export SLURM_CONF=$folder/slurm.conf
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
slurmctld -c
slurmd -c -N node1
slurmd -c -N node2
for _ in $(seq 200); do
    [ "$(sinfo -h -p common -t idle -o %D 2>/dev/null)" = 2 ] && exit 0
    sleep 0.1
done
echo "error: the nodes did not come up; the last lines of $folder/*.log:" >&2
tail -n 5 "$folder"/*.log "$folder/munge/log" >&2
exit 1

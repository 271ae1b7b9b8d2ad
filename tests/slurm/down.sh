#!/usr/bin/env bash
# Stops what tests/slurm/up.sh FOLDER started: the jobs first, since daemons that are ended before them leave orphans.
set -uo pipefail
PATH=$PATH:/usr/sbin:/sbin
[ $# = 1 ] || { echo "usage: down.sh FOLDER" >&2; exit 2; }
export SLURM_CONF=$1/slurm.conf
processes=()
for file in "$1"/node1.pid "$1"/node2.pid "$1"/slurmctld.pid "$1"/munge/pid; do
    [ -s "$file" ] && processes+=("$(cat "$file")")
done
[ ${#processes[@]} = 0 ] && exit 0
if scontrol ping >/dev/null 2>&1; then
    mapfile -t jobs < <(squeue -h -o %A | sort -u)
    [ ${#jobs[@]} = 0 ] || scancel --signal=KILL --full "${jobs[@]}"
    [ ${#jobs[@]} = 0 ] || scancel "${jobs[@]}"
    for _ in $(seq 300); do
        [ -z "$(squeue -h -o %A)" ] && break
        sleep 0.1
    done
fi
kill "${processes[@]}" 2>/dev/null
for _ in $(seq 100); do
    kill -0 "${processes[@]}" 2>/dev/null || exit 0
    sleep 0.1
done
kill -9 "${processes[@]}" 2>/dev/null
exit 0

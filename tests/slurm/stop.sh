#!/usr/bin/env bash
# Ends the SLURM that start.sh started in the folder $1 (default /tmp/histoflow-slurm), and removes the folder.
set -euo pipefail
place="${1:-/tmp/histoflow-slurm}"
export SLURM_CONF="$place/slurm.conf"
if [ -s "$SLURM_CONF" ]; then
    scancel --quiet --user="$(id -un)" 2>/dev/null || true
fi
for file in "$place/slurmd.pid" "$place/slurmctld.pid" "$place/munge/munged.pid"; do
    [ -s "$file" ] || continue
    pid="$(cat "$file")"
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
done
rm -rf "$place"

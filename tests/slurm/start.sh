#!/usr/bin/env bash
# A real SLURM of one node on this machine, for the tests: installs it where it is missing, and starts it. Needs root.
# Everything it writes but munge's key lies in one folder, $1 (default /tmp/histoflow-slurm); stop.sh ends it.
set -euo pipefail
place="${1:-/tmp/histoflow-slurm}"
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi
mkdir -p "$place/state" "$place/spool" "$place/munge"
host="$(hostname -s)"
memory="$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024 - 256))"

[ -s "$place/munge.key" ] || head -c 1024 /dev/urandom >"$place/munge.key"
chmod 700 "$place" "$place/munge"
chmod 400 "$place/munge.key"
if ! [ -s "$place/munge/munged.pid" ] || ! kill -0 "$(cat "$place/munge/munged.pid")" 2>/dev/null; then
    munged --force --key-file="$place/munge.key" --socket="$place/munge/munge.socket" \
        --pid-file="$place/munge/munged.pid" --seed-file="$place/munge/seed" --log-file="$place/munge/munged.log"
fi

cat >"$place/slurm.conf" <<CONF
ClusterName=histoflow
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
CONF
export SLURM_CONF="$place/slurm.conf"
running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }
running "$place/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
running "$place/slurmd.pid" || slurmd -f "$SLURM_CONF"
for _ in $(seq 60); do
    if sinfo -h -o %T 2>/dev/null | grep -q -E '^(idle|mixed|allocated)$'; then
        echo "SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.5
done
echo "SLURM did not come up; see $place/slurmctld.log and $place/slurmd.log" >&2
exit 1

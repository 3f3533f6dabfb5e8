#!/usr/bin/env bash
# Runs the shards of `quantier make` through a real Slurm on this machine, and compares all outputs with those of one process.
#
#   scripts/shards-slurm.sh [SHARDS] [KILLS]      shards of every stage (default 4), of which so many are killed (default 5)
#
# A slurmctld, a munged and two slurmd (nodes n1 and n2) are started in a temporary directory, and ended with it. KILLS shards are
# killed by SIGKILL, and queue themselves again; then node n1 dies with all its processes in the middle of a shard: Slurm finds it
# down and queues the shard again on n2. Exit code 1 if an output differs. Takes about half an hour, most of it Slurm's waiting.
#
# Needs root, and Debian's slurmctld, slurmd, slurm-client and munge.
#
# MAKE       arguments of make, in place of three sizes of the reference model with few chunks
# QUANTIER   the program (default: target/release/quantier, built if it is not there)
# WORK       where the outputs go (default: a temporary directory); `one/out` there is that of one process
# DEATH      0: no node dies
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
find_quantier
quantier=$(realpath "$quantier")
shards=${1:-4} kills=${2:-5}
slurm=$(mktemp -d)
ended() {
    for pid in "$slurm"/*.pid "$slurm"/munge/pid; do
        [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
    done
    sleep 1
    rm -rf "$slurm"
    [ -n "${WORK:-}" ] || rm -rf "$work"
}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
trap ended EXIT

host=$(hostname)
mkdir -m 700 "$slurm/munge"
mkdir "$slurm/state" "$slurm/spool-n1" "$slurm/spool-n2"
(umask 077 && head -c 128 /dev/urandom >"$slurm/munge/key")
munged --force --key-file="$slurm/munge/key" --socket="$slurm/munge.socket" --pid-file="$slurm/munge/pid" \
    --log-file="$slurm/munge/log" --seed-file="$slurm/munge/seed"
cat >"$slurm/slurm.conf" <<END
ClusterName=shards
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$slurm/munge.socket
SlurmctldPort=16917
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool-%n
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd-%n.pid
SlurmctldLogFile=$slurm/slurmctld.log
SlurmdLogFile=$slurm/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=36000
MpiDefault=none
NodeName=n1,n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=[16918-16919] CPUs=1 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$slurm/slurm.conf
slurmctld -c
slurmd -N n1
slurmd -N n2

plan_for "$shards" slurm
"$quantier" cluster slurm "$out" --cores 1 --submit

# Processes of shards: their own numbers, found by the output directory in their arguments.
running() {
    for process in /proc/[0-9]*; do
        # The batch script has other arguments.
        if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -q "^$quantier shard $out "; then echo "${process#/proc/}"; fi
    done
}
on_node() {
    for process in /proc/[0-9]*; do
        if { tr '\0' '\n' <"$process/environ"; } 2>/dev/null | grep -qx "SLURMD_NODENAME=$1"; then echo "${process#/proc/}"; fi
    done
}
die() {
    # The keepers of the jobs first, so that none of them reports the end.
    jobs=$(on_node n1)
    keepers=$(for job in $jobs; do awk '{print $4}' "/proc/$job/stat" 2>/dev/null; done | sort -u)
    kill -9 "$(cat "$slurm/slurmd-n1.pid")" || true
    for pid in $keepers $jobs; do
        case $(cat "/proc/$pid/comm" 2>/dev/null) in slurmstepd | quantier | slurm_script | sh) kill -9 "$pid" || true ;; esac
    done
}
# A controller that is late to answer still has jobs.
has_jobs() {
    local jobs
    jobs=$(squeue --noheader) || return 0
    [ -n "$jobs" ]
}
killed=0 dead=0 begun=$SECONDS
while has_jobs; do
    pids=$(running)
    if [ "$killed" -lt "$kills" ] && [ -n "$pids" ]; then
        kill_shard "$(echo "$pids" | shuf -n 1)" && killed=$((killed + 1))
        sleep 2
    elif [ "$dead" = 0 ] && [ "${DEATH:-1}" = 1 ] && [ -n "$(on_node n1)" ] && [ "$killed" -ge "$kills" ]; then
        die
        dead=1
        echo "node n1 has died"
    elif [ "$dead" = 1 ] && sinfo --noheader -n n1 -o %T | grep -q down; then
        dead=2
        echo "Slurm has found it down; it comes back"
        slurmd -N n1
    fi
    sleep 1
    [ $((SECONDS - begun)) -lt "${LIMIT:-3600}" ] || { squeue; "$quantier" cluster status "$out"; exit 1; }
done
"$quantier" cluster status "$out"
echo "$killed shards killed; requeued $(grep -ci requeue "$slurm/slurmctld.log" || true) times; node died: $dead"
[ -f "$out/frontier.json" ] || { tail -n 20 "$out"/work/slurm/*.log; exit 1; }
QUANTIER=$quantier scripts/shards.py --compare "$work/one/out" "$out"

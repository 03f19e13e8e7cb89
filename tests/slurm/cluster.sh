#!/bin/bash
# A Slurm cluster of one node on the loopback address. Everything needs root.
#
#   tests/slurm/cluster.sh test            installs Slurm and runs the tests in this folder
#   tests/slurm/cluster.sh install         installs Debian's slurm-wlm and munge
#   tests/slurm/cluster.sh start FOLDER    writes FOLDER/slurm.conf and starts the daemons
#   tests/slurm/cluster.sh stop FOLDER     stops them
#
# Everything is in FOLDER, so an existing configuration in /etc/slurm is left as it is. Slurm's
# commands find the cluster by SLURM_CONF=FOLDER/slurm.conf.
set -euo pipefail

install() {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

test() {
    install
    cd "$(dirname "$0")/../.."
    "${PYTHON:-.venv/bin/python}" -m pytest -m slow -ra -s -v tests/slurm
}

start() {
    local folder=$1 host
    host=$(hostname -s)
    mkdir -p "$folder"/{state,spool}
    chmod 755 "$folder"
    head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed"
    cat > "$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
# No cgroups, so that the cluster runs in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2
# A job of the partition urgent preempts one of the partition main, which is requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=60 PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=$host MaxTime=60 PriorityTier=2 PreemptMode=OFF State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld
    slurmd
    for _ in $(seq 30); do
        if sinfo --noheader --format %T 2> /dev/null | grep -q idle; then
            return
        fi
        sleep 1
    done
    tail -n 20 "$folder"/slurm*.log >&2
    exit 1
}

stop() {
    local name
    for name in slurmd slurmctld munged; do
        [ ! -f "$1/$name.pid" ] || kill "$(cat "$1/$name.pid")" || true
    done
}

"$@"

#!/usr/bin/env bash
# A SLURM of one node on this machine, to try workflow/profiles/slurm where there is no cluster.
#
#   slurm.sh start FOLDER   start munged, slurmctld and slurmd; FOLDER is made and holds all of it
#   slurm.sh env FOLDER     print the settings of a shell that uses it: eval "$(slurm.sh env FOLDER)"
#   slurm.sh stop FOLDER    cancel its jobs, stop the daemons, remove FOLDER
#
# Needs root and apt-get install --no-install-recommends slurm-wlm munge. No systemd, no accounting
# database, and nothing holds a job to the memory it asked for: for trying things out only.
set -euo pipefail

fail() {
    echo "Error: $1" >&2
    exit 1
}

free_port() {
    local port
    while port=$((RANDOM % 20000 + 20000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

# Repeat a command every 0.2 s until it succeeds, $1 times at most.
await() {
    local tries=$1
    shift
    until "$@"; do
        ((tries-- > 0)) || return 1
        sleep 0.2
    done
}

write_config() {
    local host node ports
    host=$(hostname -s)
    node=$(slurmd -C | head -n 1) # name, processors and memory of this machine
    ports=("$(free_port)" "$(free_port)")
    cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
# Seconds between SIGTERM and SIGKILL; seconds for which squeue knows of a job that has ended.
KillWait=5
MinJobAge=3600
$node NodeAddr=127.0.0.1
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

# Inside a job, Snakemake's plugin starts srun without any SLURM_* setting, SLURM_CONF among them.
write_srun() {
    mkdir "$folder/bin"
    printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" \
        >"$folder/bin/srun"
    chmod +x "$folder/bin/srun"
}

node_is_up() {
    [[ $(sinfo --noheader --format=%T 2>/dev/null) =~ ^(idle|mixed|allocated)$ ]]
}

no_jobs() {
    [[ -z $(squeue --noheader 2>/dev/null) ]]
}

# End the daemon $1, whose process id it wrote to FOLDER.
end() {
    local pid
    pid=$(cat "$folder/$1.pid" 2>/dev/null) || return 0
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]] || return 0
    kill "$pid"
    await 50 eval "! kill -0 $pid 2>/dev/null" || kill -KILL "$pid"
}

clean_up() {
    end slurmd
    end slurmctld
    end munged
    rm -rf "$folder"
}

failed_start() {
    tail -n 20 "$folder"/*.log >&2 || true
    clean_up
    fail "SLURM did not start; the logs of its daemons are above"
}

start() {
    [[ $EUID -eq 0 ]] || fail "starting SLURM needs root; run it with sudo or in a container"
    local name
    for name in munged slurmctld slurmd srun sbatch squeue scancel; do
        command -v "$name" >/dev/null ||
            fail "$name not found; apt-get install --no-install-recommends slurm-wlm munge"
    done
    [[ ! -e $folder ]] || fail "$folder exists; name a folder that does not, or stop that SLURM first"
    ((${#folder} < 80)) || fail "$folder: too long a path for a socket; name one of under 80 characters"
    mkdir -m 700 "$folder"
    trap failed_start EXIT
    mkdir "$folder/state" "$folder/spool"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    # --force: munged objects to a folder that only root can enter, and only root uses this one.
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munge.seed" 2>>"$folder/munged.log"
    write_config
    write_srun
    slurmctld
    slurmd
    await 150 node_is_up
    trap - EXIT
    echo "SLURM runs: eval \"\$($0 env $folder)\""
}

stop() {
    [[ -f $folder/slurm.conf ]] || fail "$folder: no SLURM was started there"
    scancel --partition=main 2>/dev/null || true
    await 100 no_jobs || echo "jobs did not end within 20 s; stopping SLURM all the same" >&2
    clean_up
}

[[ $# -eq 2 && $1 =~ ^(start|env|stop)$ ]] || fail "usage: $0 start|env|stop FOLDER"
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf PATH=$PATH:/usr/sbin

case $1 in
    start) start ;;
    stop) stop ;;
    env)
        [[ -f $SLURM_CONF ]] || fail "$folder: no SLURM was started there"
        printf 'export SLURM_CONF=%q PATH=%q:"$PATH"\n' "$SLURM_CONF" "$folder/bin"
        ;;
esac

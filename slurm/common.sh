# What all of smalti's jobs share. `smalti submit` copies it into each script; by hand it is read from the checkout.

clean_environment() { # what a login shell, a module or ~/.local may have left must not change results
    unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PROJ_DATA PROJ_LIB GDAL_DATA GDAL_DRIVER_PATH LD_PRELOAD
    unset OMP_NUM_THREADS OMP_THREAD_LIMIT MKL_NUM_THREADS OPENBLAS_NUM_THREADS
    export PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
}

set_threads() { # as many threads as CPUs are allotted, by the affinity mask and by what was asked for
    local threads
    unset OMP_NUM_THREADS OMP_THREAD_LIMIT # nproc would believe them
    threads=$(nproc)                       # reads the affinity mask
    if [ "${SLURM_CPUS_PER_TASK:-$threads}" -lt "$threads" ]; then threads=$SLURM_CPUS_PER_TASK; fi
    export OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads
}

code=0 child='' stopping='' interrupted='' sampler='' peak_file=''

on_signal() { # USR1: the limit is near; TERM: Slurm wants the node back. The step stops and ends with 75.
    interrupted=1
    [ -z "$stopping" ] || return 0
    stopping=$1
    echo "smalti-task: $1 received, stopping; what is complete stays"
    [ -z "$child" ] || kill -"$STOP_SIGNAL" "$child" 2>/dev/null || true
}

watch_memory() { # the largest sum of resident memory of this script's processes, for sites without accounting
    local session most=0 now
    session=$(ps -o sid= -p $$ | tr -d ' ')
    while sleep 2; do
        now=$(ps -o rss= -s "$session" | awk '{ sum += $1 } END { print int(sum / 1024) }')
        if [ "$now" -gt "$most" ]; then
            most=$now
            echo "$most" >"$peak_file"
        fi
    done
}

begin() { # begin SIGNAL: how the step is told to stop
    STOP_SIGNAL=$1
    trap 'on_signal USR1' USR1
    trap 'on_signal TERM' TERM
    clean_environment
    export SLURM_LOCALID=${SLURM_LOCALID:-0} SLURM_JOB_ID=${SLURM_JOB_ID:-0} USER=${USER:-$(id -un)}
    site_modules
    site_environment
    set_threads
    echo "smalti-task: start job=$SLURM_JOB_ID index=$INDEX of=$TASKS attempt=${SLURM_RESTART_COUNT:-0}" \
        "host=$(hostname) cpus=$OMP_NUM_THREADS at=$(date +%s)"
    peak_file=$(mktemp)
    watch_memory &
    sampler=$!
}

step() { # step COMMAND...: in the background, so that signals reach this shell at once
    "$@" &
    child=$!
    if [ -n "$stopping" ]; then kill -"$STOP_SIGNAL" "$child" 2>/dev/null || true; fi
    interrupted=1
    while [ -n "$interrupted" ]; do # a signal ends `wait` early
        interrupted=''
        code=0
        wait "$child" || code=$?
    done
    child=''
    if [ -n "$stopping" ] && [ "$code" -ge 128 ]; then code=75; fi # it died of the signal before it could answer
    return 0
}

finish() { # 0 complete; 75 try again: back into the queue, a few times; anything else stays failed
    { kill "$sampler" && wait "$sampler"; } 2>/dev/null || true
    echo "smalti-task: end code=$code stopped=${stopping:-no} seconds=$SECONDS peak_mb=$(cat "$peak_file")" \
        "attempt=${SLURM_RESTART_COUNT:-0} at=$(date +%s)"
    rm -f "$peak_file"
    if [ "$code" = 75 ] && [ "$stopping" != TERM ] && [ "$SLURM_JOB_ID" != 0 ]; then
        if [ "${SLURM_RESTART_COUNT:-0}" -lt "$REQUEUES" ]; then
            echo "smalti-task: back into the queue"
            scontrol requeue "$SLURM_JOB_ID" && sleep 300 # Slurm ends this script meanwhile
        else
            echo "smalti-task: was requeued $REQUEUES times, giving up: ask for more time, or raise limits.requeues"
        fi
    fi
    if [ "$code" = 1 ] && [ -n "$PASS_ON_FAILED" ]; then
        echo "smalti-task: some tiles failed; passed on, so that the next stage does the others"
        code=0
    fi
    exit "$code"
}

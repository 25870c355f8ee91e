#!/usr/bin/env bash
# The program on one worker, apart from the connection that started it.
#
#   worker.sh start [--env NAME=VALUE | --secret NAME=SECRET]... -- COMMAND...   if it does not run yet
#   worker.sh status       one line: worker HOST running | exited CODE | absent
#   worker.sh stop GRACE   SIGTERM, GRACE seconds to save, SIGKILL; absent from then on
#
# A secret's value comes from Secret Manager and is in the program's environment only. The log is run/log.
set -euo pipefail
place=${TPU_LAUNCH_PLACE:-$HOME/run}

running() { [ -f "$place/pid" ] && kill -0 -- "-$(cat "$place/pid")" 2> /dev/null; }

status() {
  if [ -f "$place/exit_code" ]; then
    echo "worker $(hostname) exited $(cat "$place/exit_code")"
  elif running; then
    echo "worker $(hostname) running"
  else
    echo "worker $(hostname) absent"
  fi
}

start() {
  if running; then status; return; fi
  while [ "$1" != -- ]; do
    case "$1" in
      --env) export "${2?}" ;;
      --secret) fetch_secret "${2%%=*}" "${2#*=}" ;;
      *) echo "worker.sh start: found '$1', allowed: --env, --secret, --" >&2; exit 2 ;;
    esac
    shift 2
  done
  shift
  mkdir -p "$place"
  rm -f "$place/exit_code"
  # The shell outlives SIGTERM, to write down how the program ended.
  # shellcheck disable=SC2016
  setsid bash -c 'trap : TERM; place=$1; shift; "$@"; echo $? > "$place/code" && mv "$place/code" "$place/exit_code"' \
    worker "$place" "$@" < /dev/null >> "$place/log" 2>&1 &
  echo $! > "$place/pid"
  # Its process group, by which it is known, is there a moment later.
  for _ in $(seq 100); do if running || [ -f "$place/exit_code" ]; then break; fi; sleep 0.05; done
  status
}

fetch_secret() {
  local value
  value=$(gcloud secrets versions access latest --secret="$2") || exit 1
  export "$1=$value"
}

stop() {
  local left=$(($1 * 10))
  if running; then kill -TERM -- "-$(cat "$place/pid")"; fi
  while running && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
  if running; then kill -KILL -- "-$(cat "$place/pid")"; fi
  rm -f "$place/pid" "$place/exit_code"
  status
}

action=$1
shift
case "$action" in
  start | status | stop) "$action" "$@" ;;
  *) echo "worker.sh: found '$action', allowed: start, status, stop" >&2; exit 2 ;;
esac

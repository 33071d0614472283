#!/usr/bin/env bash
# A newcomer's path, timed: a fresh clone, an empty home, and what the README says, step by step.
#
#     benchmarks/newcomer.sh
#
# Prints seconds, step by step and in all. The steps after the install are what `make quickstart`
# does.
set -euo pipefail
origin=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset VIRTUAL_ENV PYTHONPATH EVOMERGE_CACHE
export HOME="$work/home" XDG_CACHE_HOME="$work/home/.cache"
mkdir -p "$HOME"
began=$SECONDS

step() {
  local name=$1 start=$SECONDS
  shift
  if ! "$@" > "$work/log" 2>&1; then
    tail -n 20 "$work/log"
    echo "$name failed"
    exit 1
  fi
  printf '%-34s %5d s\n' "$name" $((SECONDS - start))
}

step "git clone" git clone -q "$origin" "$work/evomerge"
cd "$work/evomerge"
step "make install" make install
bin=.venv/bin
step "four tiny models are trained" $bin/evomerge zoo tiny
step "the search, and its report" $bin/evomerge run experiments/quickstart_pareto.yaml
step "the front is exported, verified" $bin/evomerge export runs/quickstart_pareto --front --out models/quickstart
step "a merged model answers" $bin/python docs/try_it.py models/quickstart
printf '%-34s %5d s\n' "in all" $((SECONDS - began))

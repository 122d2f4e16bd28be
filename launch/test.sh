#!/usr/bin/env bash
# Everything that is tested: ./launch/test.sh [pytest's arguments ...], e.g. ./launch/test.sh tests/strategies -k lora
#
# Sets everything up (launch/setup.sh; as root a SLURM and a browser, too, for their tests), then ruff, mypy and pytest; the first that fails ends it.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

set_up test demo
set_up_slurm
set_up_browser
echo "Ready after $SECONDS s"
ruff check .
ruff format --check .
mypy
echo "Linted and typed after $SECONDS s; now the tests"
case " $* " in
    *" tests/"*) exec python -m pytest "$@" ;;
    # All of it: on two workers; what shares something heavy stays together (tests/workers.py).
    *) exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" ;;
esac

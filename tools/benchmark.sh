# Sourced by the programs in benchmarks/: what they need, then the Python program itself.

# run_benchmark CHECKOUT PROGRAM [ARGUMENT]...
run_benchmark() {
    checkout=$1 program=$2
    shift 2
    . "$checkout/tools/venv.sh"
    prepare_venv "$checkout" requirements-dev.lock
    "$checkout/.venv/bin/python" "$checkout/tests/peers/install.py" >&2
    exec "$checkout/.venv/bin/python" "$checkout/benchmarks/$program" "$@"
}

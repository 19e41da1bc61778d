# Sourced by the programs in benchmarks/: what they need, then the Python program itself.

# run_benchmark CHECKOUT PROGRAM [ARGUMENT]...
#
# Measured is the distribution's own Python where there is one, which is what people run: some build theirs without the
# optimisations that it has, and it is then a sixth slower.
run_benchmark() {
    checkout=$1 program=$2
    shift 2
    . "$checkout/tools/venv.sh"
    if /usr/bin/python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        prepare_venv "$checkout" requirements-dev.lock "$checkout/.cache/benchmark" /usr/bin/python3
    else
        prepare_venv "$checkout" requirements-dev.lock
    fi
    "$venv/bin/python" "$checkout/tests/peers/install.py" >&2
    exec "$venv/bin/python" "$checkout/benchmarks/$program" "$@"
}

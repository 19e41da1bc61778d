"""From a Config to what the relay test needs: the tester's identity, the consent office, the collector to ask."""

from functools import partial

from posthouse.config import Config, ConfigError, ListenerRole
from posthouse.policy.networks import NetworkSet
from posthouse.serve.collecting import contact_of, testers_key
from posthouse.serve.control import ControlError, ServerNotRunning, ask
from posthouse.tester.asking import RemoteCollector
from posthouse.tester.collector import CollectorClient
from posthouse.tester.consent import ConsentRules, DoNotTest, read_do_not_test
from posthouse.tester.machine import own_addresses
from posthouse.tester.office import CONSENT_FILE, Office, OfficeFault
from posthouse.tester.proving import Identity
from posthouse.tester.receipts import RECEIPTS_FILE, LocalCollector
from posthouse.tester.token import TokenKey


def identity_of(config: Config) -> Identity:
    """How tests of this configuration show themselves."""
    tester = config.tester
    return Identity(
        tester.hello_name or config.hostname,
        tester.reverse_path or f"relay-test@{config.hostname}",
        contact_of(config),
    )


def office_of(config: Config) -> Office:
    """Where consent is asked for; the list of what is never tested is read at each decision."""
    return Office(config.data_dir / CONSENT_FILE, partial(_consent_rules, config), partial(_key, config))


def _key(config: Config) -> TokenKey:
    try:
        return testers_key(config)
    except ConfigError as error:
        raise OfficeFault(str(error)) from error


def _consent_rules(config: Config) -> ConsentRules:
    tester = config.tester
    try:
        never = never_tested(config)
    except ConfigError as error:
        raise OfficeFault(str(error)) from error
    return ConsentRules(
        own_networks=NetworkSet.parse(tester.own_networks),
        machine=own_addresses(),
        do_not_test=never,
        tests_per_target=tester.tests_per_target,
        tests_per_day=tester.tests_per_day,
    )


def never_tested(config: Config) -> DoNotTest:
    """[tester] do_not_test and do_not_test_file together. ConfigError when the file can't be read, or says what it can't."""
    file = config.tester.do_not_test_file
    try:
        lines = file.read_text("utf-8").splitlines() if file is not None else []
        return read_do_not_test([*config.tester.do_not_test, *lines])
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"[tester] do_not_test_file {file}: {words}; nothing is tested without it") from error


def collector_of(config: Config) -> tuple[CollectorClient | None, str]:
    """Whom a test of this configuration asks what has arrived; or None and the sentence why nobody can be asked.

    Another Posthouse, if [tester] names its URL; else the server that runs on this data directory, if it has a listener of
    role collector. ConfigError when there is no usable key.
    """
    tester = config.tester
    if tester.collector_url:
        return RemoteCollector(tester.collector, tester.collector_url, testers_key(config)), ""
    domain = tester.collector or next(iter(config.collector.domains), "")
    if not domain:
        return None, "no collector is configured ([collector] here, or [tester] collector elsewhere)"
    try:
        listeners = ask(config.data_dir, "status", timeout=5.0)["listeners"]
    except (ServerNotRunning, ControlError) as error:
        return None, f"the collector of this machine does not run: {error}"
    if not any(one["role"] == ListenerRole.COLLECTOR for one in listeners):
        return None, f"the server on {config.data_dir} has no listener of role collector"
    return LocalCollector(domain, config.data_dir / RECEIPTS_FILE), ""

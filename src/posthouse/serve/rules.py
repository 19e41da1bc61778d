"""From a Config to the rules of policy: apart from the rest of the wiring, for those who only judge and never relay."""

from posthouse.config import Config, ConfigError, read_recipients
from posthouse.net.listen import address_text
from posthouse.policy.lab import LabFault, check_end
from posthouse.policy.rules import Rules, RulesError, compile_rules


def check_labs(config: Config, rules: Rules, now: float) -> None:
    """ConfigError when a lab's end is past, or too far ahead, at `now`: for a start and a reload. A running one just closes."""
    try:
        for lab in rules.labs:
            check_end(lab, now)
    except LabFault as fault:
        raise ConfigError(f"{config.place}: {fault}") from fault


def rules_of(config: Config, *, relay_enabled: bool = True) -> Rules:
    """The rules of a configuration. ConfigError when they contradict themselves or the list of recipients can't be read."""
    relay = config.relay
    limits = config.limits
    try:
        return compile_rules(
            local_domains=relay.local_domains,
            relay_domains=relay.relay_domains,
            trusted_networks=relay.trusted_networks,
            gateways_as_strangers=relay.gateways_as_strangers,
            gateways_trusted=relay.gateways_trusted,
            recipients=None if relay.recipients is None else read_recipients(relay.recipients),
            aliases=config.aliases,
            postmaster=config.postmaster,
            recipients_stranger=limits.recipients_stranger,
            recipients_trusted=limits.recipients_trusted,
            relay_enabled=relay_enabled,
            own_name=config.hostname,
            labs=[
                (address_text(one.host, one.port), one.lab.networks, one.lab.destinations, one.lab.until)
                for one in config.listeners
                if one.lab is not None
            ],
        )
    except RulesError as error:
        raise ConfigError(f"{config.source or 'the configuration'}: {error}") from error

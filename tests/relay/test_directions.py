"""From a destination to next hops, where no DNS is needed, and where it has nothing to say."""

import asyncio
from ipaddress import ip_address

from posthouse.dns.mx import Ourselves
from posthouse.dns.resolver import LookupFailed, NoName
from posthouse.mail.outcome import Deferred, Failed
from posthouse.mail.reason import Slug
from posthouse.policy.networks import NetworkSet
from posthouse.relay.directions import Directions, Pathfinder
from posthouse.relay.route import Route, RouteTable, parse_hop


class Dns:
    """A resolver that knows nothing."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def mail_exchanges(self, _name: str) -> object:
        return self.answer

    ipv4_addresses = ipv6_addresses = mail_exchanges


BOX = Route(("",), (parse_hop("maildir:/data/postmaster"),))
WORLD = Route(("*",), (parse_hop("mx:"),))


def find(destination: str, *routes: Route, dns: object = NoName(60.0)) -> Directions | Deferred | Failed:
    ourselves = Ourselves(("relay.test",), (ip_address("198.51.100.1"),))
    return asyncio.run(Pathfinder(RouteTable(routes), Dns(dns), ourselves).find(destination))  # type: ignore[arg-type]


def test_cron_mail_to_this_hosts_own_name_is_kept_where_the_postmasters_is() -> None:
    found = find("relay.test", WORLD, BOX)
    assert isinstance(found, Directions)
    assert found.route is BOX


def test_mail_to_our_own_name_waits_while_the_dns_does_not_answer() -> None:
    assert isinstance(find("relay.test", WORLD, BOX, dns=LookupFailed("no answer")), Deferred)


def test_another_domain_that_does_not_exist_fails() -> None:
    found = find("nowhere.test", WORLD, BOX)
    assert isinstance(found, Failed)
    assert found.reason.slug is Slug.NO_SUCH_DOMAIN


def test_a_destination_without_a_route_waits_for_one() -> None:
    found = find("there.test", BOX)
    assert isinstance(found, Deferred)
    assert found.reason.slug is Slug.CONFIGURATION


def test_a_strangers_address_literal_does_not_lead_inside() -> None:
    assert isinstance(find("[127.0.0.1]", WORLD), Failed)
    assert isinstance(find("[198.51.100.1]", WORLD), Failed)
    allowed = Route(("*",), (parse_hop("mx:"),), allow_networks=NetworkSet.parse(["127.0.0.0/8"]))
    found = find("[127.0.0.1]", allowed)
    assert isinstance(found, Directions)
    assert found.next_hops[0].hosts == (("[127.0.0.1]", "127.0.0.1", 25),)


def test_next_hops_are_tried_in_the_order_of_the_route_and_what_has_none_is_left_out() -> None:
    found = find("there.test", Route(("*",), (parse_hop("mx:"), parse_hop("smtp://127.0.0.1:2526"))))
    assert isinstance(found, Directions)
    assert [str(next_hop.hop) for next_hop in found.next_hops] == ["smtp://127.0.0.1:2526"]

"""The public side: what visitors are shown, what is kept from them, and who gets into the administration."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from pytest_bdd import given, then, when

from certificate.verdict import NotExercised
from environments.model import Environment, Machine, Role
from provisioning.access import Letters, Login, leads_to_login
from provisioning.account import PERMISSION_DENIED, PROTECTED, Account, ServiceToken
from provisioning.edge import ingress, people, suite
from provisioning.poll import DeadlineExceeded, NotYet, poll
from provisioning.public import Answer, PublicHost, connect
from provisioning.session import Session
from provisioning.tunnel import UNIT
from provisioning.wordpress import WordPress, gist
from steps.complaints import none_of, unless
from steps.power import Power

PIN_TIMEOUT_S, NO_PIN_S = 20, 3
PUBLIC_TIMEOUT_S, DIALLED_TIMEOUT_S = 15, 60  # a connector that has just started has the time to dial in
PIN_LIFE_MIN = 10
SSH_PORT = 22
# SSH, HTTP, HTTPS, rpcbind, etcd, NFS, MySQL, Kubernetes and kubelet.
SERVICE_PORTS = (SSH_PORT, 80, 111, 443, 2049, 2379, 3306, 6443, 10250)
NO_WAY_S = 3
ADMINISTRATION = "/wp-admin/"
# What the public may ask for, guarded or not: pages, files, interfaces, errors.
PAGES = (
    "/",
    "/?p=1",
    "/?feed=rss2",
    "/?s=haproof",
    "/index.php?rest_route=/",
    "/index.php?rest_route=/wp/v2/posts",
    "/wp-includes/css/dashicons.min.css",
    "/wp-content/",
    "/robots.txt",
    "/xmlrpc.php",
    "/no-such-page",
    "/wp-admin/",
    "/wp-login.php",
    "/%",
)
# The same pages as a careless server might understand them.
SPELLINGS = (
    "/{}",
    "/{}/",
    "/{}/index.php",
    "/{}?x=1",
    "//{}",
    "/./{}",
    "/x/../{}",
    "/x/%2e%2e/{}",
    "/{};x",
    "/{}%20",
    "/{}%00",
)


@dataclass(frozen=True)
class Asked:
    """Somebody who has asked for a PIN: their login, the page they were shown, and the PIN that came, if one did."""

    login: Login
    shown: requests.Response
    pin: str | None


@pytest.fixture
def public(environment: Environment) -> PublicHost:
    """The public host."""
    return PublicHost.of(environment.edge)


@pytest.fixture
def account(environment: Environment) -> Account:
    """What is declared at Cloudflare."""
    return Account(environment)


@pytest.fixture
def connector_machine(environment: Environment) -> Machine:
    """The machine that dials out."""
    return environment.with_role(Role.TUNNEL)[0]


def spellings() -> list[str]:
    """Every spelling of every guarded path that is tried. Pure."""
    found = []
    for path in PROTECTED:
        first = f"{ord(path[0]):02x}"
        words = (path.upper(), path.title(), f"%{first}{path[1:]}", f"%25{first}{path[1:]}")
        found += [form.format(path) for form in SPELLINGS] + [f"/{word}" for word in words]
    return found


def inner_addresses(environment: Environment) -> dict[str, re.Pattern[str]]:
    """What no public answer may hold, by what it is: addresses of machines and Pods, and the virtual ones. Pure."""

    def whole(address: object) -> re.Pattern[str]:
        return re.compile(rf"(?<![\d.]){re.escape(str(address))}(?![\d.]*\d)")

    found = {f"{m.name}'s {a}": whole(a) for m in environment.machines for a in m.addresses.values()}
    found |= {f"the virtual address {environment.wordpress.vip}": whole(environment.wordpress.vip)}
    # Pods have the subnet's first two numbers in common; 10.244 alone might be a version.
    pods = re.escape(".".join(str(environment.kubernetes.pod_subnet.network_address).split(".")[:2]))
    return found | {"a Pod's address": re.compile(rf"(?<![\d.]){pods}\.\d+\.\d+")}


def told_addresses(answer: Answer, patterns: dict[str, re.Pattern[str]]) -> list[str]:
    """The addresses that an answer holds, in a header or in its body. Pure."""
    text = "\n".join([f"{name}: {v}" for name, values in answer.headers.items() for v in values] + [answer.text])
    return [f"expected no address, found {what}" for what, pattern in patterns.items() if pattern.search(text)]


@then("the public host shows the site's front page to anybody")
def front_page(public: PublicHost, environment: Environment) -> None:
    """By its title, without a cookie."""
    shown_within(PUBLIC_TIMEOUT_S, public, environment)


@then("the public host shows the site's front page to anybody again")
def front_page_again(public: PublicHost, environment: Environment) -> None:
    """As `front_page`, after the connector was away."""
    shown_within(DIALLED_TIMEOUT_S, public, environment)


def shown_within(timeout_s: float, public: PublicHost, environment: Environment) -> None:
    """Wait for the front page at the public host."""

    def shown() -> bool:
        try:
            answer = public.get("/")
        except OSError as error:
            raise NotYet(str(error)) from error
        if answer.status != requests.codes.ok or environment.wordpress.title not in answer.text:
            raise NotYet(f"it answers {answer.status}: {gist(answer.text)}")
        return True

    try:
        poll(f"https://{public.name}/", shown, timeout_s=timeout_s, interval_s=1)
    except DeadlineExceeded as error:
        raise AssertionError(str(error)) from error


@then("no address of the target shows in what the public side answers")
def no_address(public: PublicHost, environment: Environment) -> None:
    """In headers and bodies of pages, files, interfaces and errors."""
    patterns = inner_addresses(environment)
    none_of({page: told_addresses(public.get(page), patterns) for page in PAGES})


@then("the connector's machine listens on no port but that of its administration")
def no_port(target: Session, connector_machine: Machine) -> None:
    """For TCP and UDP, on any address that is not the machine's own loopback."""
    told = target.shell.check(connector_machine, "ss -Hltun")
    sockets = [line.split() for line in told.splitlines() if line.strip()]
    open_ = {f"{words[0]} {words[4]}" for words in sockets if not re.match(r"(127\.|\[::1\]|\[::ffff:127\.)", words[4])}
    strange = sorted(place for place in open_ if not re.fullmatch(rf"tcp .*:{SSH_PORT}", place))
    assert sockets, "nothing listens at all, not even SSH: this was not read"
    assert not strange, f"{connector_machine.name} listens on {', '.join(strange)}"


@given("a place outside where visitors are", target_fixture="outside")
def outside(environment: Environment) -> str:
    """The proxy that the environment names."""
    if environment.edge.proxy is None:
        raise NotExercised("the runner is not where visitors are; edge.proxy may name an HTTP proxy that is")
    return str(environment.edge.proxy)


@then("from there the public host answers, and no machine of the target and no virtual address does")
def no_way_round(outside: str, public: PublicHost, environment: Environment) -> None:
    """No TCP connection to any of them, at the ports of their services."""
    assert public.get("/").status == requests.codes.ok, "the public host does not answer there: nothing was tried"
    places = {f"{m.name} {a}": str(a) for m in environment.machines for a in m.addresses.values()}
    places["the virtual address"] = str(environment.wordpress.vip)

    def tried(place: tuple[str, int]) -> list[str]:
        try:
            connect(*place, outside, NO_WAY_S).close()
        except OSError:
            return []
        return [f"expected no way to port {place[1]}, found one"]

    pairs = [(name, (address, port)) for name, address in places.items() for port in SERVICE_PORTS]
    with ThreadPoolExecutor(len(places)) as pool:
        answers = list(pool.map(tried, [place for _, place in pairs]))
    none_of(
        {
            name: [line for (n, _), told in zip(pairs, answers, strict=True) if n == name for line in told]
            for name in places
        }
    )


@then("the tunnel leads from the public host to the virtual address, and from every other host to nothing")
def rules(account: Account, environment: Environment) -> None:
    """As Cloudflare has it."""
    tunnel = account.tunnel()
    assert tunnel, f"there is no tunnel {environment.tag}"
    found = account.ingress(tunnel)
    assert found == ingress(environment), f"expected the rules {ingress(environment)}, found {found}"


@when("the connector's machine is rebooted")
def reboot(power: Power, connector_machine: Machine) -> None:
    """By the hypervisor."""
    power.reboot((connector_machine,))


@then("every spelling of the administration leads to the login of Access")
def all_guarded(public: PublicHost) -> None:
    """Or is no page at all: what must not happen is that the site itself answers."""

    def open_door(answer: Answer) -> list[str]:
        guarded = leads_to_login(answer.status, answer.header("location"), public.name)
        nothing = answer.status in (requests.codes.bad_request, requests.codes.forbidden, requests.codes.not_found)
        told = f"{answer.status} {answer.header('location')} {gist(answer.text)}".strip()
        return unless(guarded or nothing, f"expected the login of Access, found {told}")

    none_of({spelling: open_door(public.get(spelling)) for spelling in spellings()})
    plain = [public.get(f"/{path}") for path in PROTECTED]
    assert all(leads_to_login(a.status, a.header("location"), public.name) for a in plain), "a plain path is no page"


@then("the policies before the administration admit the declared addresses and nobody else")
def admitted(account: Account, environment: Environment) -> None:
    """As Cloudflare has them, application by application over the public host's administration."""
    guarding = account.applications_over(environment.edge.public_host)
    assert guarding, f"no application stands before {environment.edge.public_host}"
    policies = {policy.id: policy for policy in account.policies().values()}
    token = account.service_token(f"{environment.tag} suite")
    declared = [(p.decision, p.include) for p in (people(environment), suite(environment, token.id if token else ""))]
    none_of(
        {
            application.name: [
                line
                for policy in (policies.get(id_) for id_ in application.policies)
                for line in unless(
                    policy is not None and (policy.decision, policy.include) in declared,
                    f"expected the declared addresses only, found {policy or 'an unknown policy'}",
                )
            ]
            for application in guarding
        }
    )


@then("a login lasts as long as declared")
def session_duration(account: Account, environment: Environment) -> None:
    """In every application over the public host."""
    declared = environment.edge.session_duration
    none_of(
        {
            application.name: unless(
                application.session_duration == declared, f"expected {declared}, found {application.session_duration}"
            )
            for application in account.applications_over(environment.edge.public_host)
        }
    )


@given("a mailbox that can be read", target_fixture="letters")
def mailbox(environment: Environment) -> Letters:
    """The one that the environment names; without it nobody here can log in."""
    if environment.edge.mailbox is None:
        raise NotExercised("the environment names no mailbox in which a PIN could be read (edge.mailbox)")
    if not environment.edge.admin_emails:
        raise NotExercised("the environment authorises domains only, and no address to log in with")
    return Letters(environment.edge.mailbox, environment.edge.ca)


def ask(public: PublicHost, letters: Letters, address: str, timeout_s: float = PIN_TIMEOUT_S) -> Asked:
    """Ask for the administration and then for a PIN."""
    login, before = Login(public), len(letters.to(address))
    login.begin(ADMINISTRATION)
    shown = login.ask(address)
    return Asked(login, shown, letters.pin(address, before, timeout_s))


def pin_of(asked: Asked) -> str:
    """The PIN that must have come."""
    assert asked.pin, "no PIN came to an authorised address"
    return asked.pin


@when("somebody asks for the administration with an authorised address", target_fixture="asked")
def authorised(public: PublicHost, letters: Letters, environment: Environment) -> Asked:
    """The first one that the environment names."""
    return ask(public, letters, environment.edge.admin_emails[0])


@when("somebody asks for the administration with an authorised address and enters the PIN", target_fixture="session")
@given("the session of somebody who is logged in", target_fixture="session")
def logged_in(public: PublicHost, environment: Environment) -> str:
    """Their session, as their browser keeps it."""
    letters = mailbox(environment)
    asked = ask(public, letters, environment.edge.admin_emails[0])
    session = asked.login.enter(pin_of(asked))
    assert session, "the right PIN was refused"
    return session


def with_session(public: PublicHost, session: str) -> Answer:
    """What the administration answers to whoever shows a session."""
    return public.get("/wp-login.php", {"Cookie": f"CF_Authorization={session}"})


def is_sites_login(answer: Answer) -> bool:
    """Whether the site itself asks for its password: then Access has let the visitor pass. Pure."""
    return answer.status == requests.codes.ok and 'id="loginform"' in answer.text


@then("the site's own login opens for them")
@then("the session opens the administration")
def opened(public: PublicHost, session: str) -> None:
    """Behind Access the site goes on to ask for its own password."""
    answer = with_session(public, session)
    assert is_sites_login(answer), f"expected the site's login, found {answer.status}: {gist(answer.text)}"


@when(
    "two people ask for the administration, one of them with an unauthorised address",
    target_fixture="two",
)
def two_people(public: PublicHost, letters: Letters, environment: Environment) -> tuple[Asked, Asked]:
    """The authorised one first: that a PIN comes to that one shows that letters can be read."""
    known = ask(public, letters, environment.edge.admin_emails[0])
    return known, ask(public, letters, "stranger@example.net", NO_PIN_S)


@then("only the authorised one gets a PIN")
def one_pin(two: tuple[Asked, Asked]) -> None:
    """The letters of both were looked through."""
    known, stranger = two
    assert known.pin, "no PIN came to the authorised address, so that none came to the other says nothing"
    assert stranger.pin is None, "a PIN came to an unauthorised address"


@then("both are shown the same page")
def same_page(two: tuple[Asked, Asked]) -> None:
    """Apart from the values of hidden fields, which are every visitor's own."""
    known, stranger = (
        (asked.shown.status_code, sorted(asked.shown.headers), re.sub(r'value="[^"]*"', "", asked.shown.text))
        for asked in two
    )
    assert known == stranger, "the page tells whether the address is authorised"


@then("a wrong PIN is refused")
def wrong_pin(asked: Asked) -> None:
    """One digit beside the right one."""
    right = pin_of(asked)
    wrong = right[:-1] + str((int(right[-1]) + 1) % 10)
    assert asked.login.enter(wrong) is None, "a wrong PIN was accepted"


@then("the right one is accepted once and refused again")
def used_pin(asked: Asked) -> None:
    """From the same page both times."""
    assert asked.login.enter(pin_of(asked)), "the right PIN was refused"
    assert asked.login.enter(pin_of(asked)) is None, "a PIN that was used was accepted again"


@then("a PIN that has expired is refused")
def expired_pin(public: PublicHost, letters: Letters, environment: Environment) -> None:
    """Where the service lets its PINs grow old; elsewhere this would have to be waited for."""
    if not letters.mailbox.ages:
        raise NotExercised(f"a PIN lasts {PIN_LIFE_MIN} minutes, longer than a scenario waits")
    address = environment.edge.admin_emails[0]
    asked = ask(public, letters, address)
    letters.age(address, PIN_LIFE_MIN * 60)
    assert asked.login.enter(pin_of(asked)) is None, "a PIN that has expired was accepted"


@then("altered, unsigned and self-signed copies of it do not")
def forged(public: PublicHost, session: str) -> None:
    """With the same claims, and under the same key's name."""
    claims = jwt.decode(session, options={"verify_signature": False})
    named = {"kid": jwt.get_unverified_header(session).get("kid", "")}
    head, body, signature = session.split(".")
    middle = len(body) // 2
    other = "A" if body[middle] != "A" else "B"
    copies = {
        "altered": f"{head}.{body[:middle]}{other}{body[middle + 1 :]}.{signature}",
        "unsigned": jwt.encode(claims, "", "none", headers=named),
        "self-signed": jwt.encode(claims, rsa.generate_private_key(65537, 2048), "RS256", headers=named),
    }

    def refused(answer: Answer) -> list[str]:
        guarded = leads_to_login(answer.status, answer.header("location"), public.name)
        return unless(guarded, f"expected the login of Access, found {answer.status}: {gist(answer.text)}")

    none_of({name: refused(with_session(public, copy)) for name, copy in copies.items()})


@then("what Access has signed for another purpose does not")
def other_purpose(public: PublicHost) -> None:
    """Its redirect to the login carries a token signed with the same key, for no audience that guards anything."""
    where = public.get(ADMINISTRATION).header("location")
    signed = parse_qs(urlsplit(where).query).get("meta", [""])[0]
    assert signed.count(".") == 2, f"expected a signed token in the redirect to the login, found {where}"
    answer = with_session(public, signed)
    guarded = leads_to_login(answer.status, answer.header("location"), public.name)
    assert guarded, f"expected the login of Access, found {answer.status}: {gist(answer.text)}"


@given("the service token of this suite", target_fixture="service_token")
def kept_token(target: Session) -> ServiceToken:
    """As the build kept it: Cloudflare tells its secret once."""
    token = ServiceToken.kept(target.state.service_token)
    if token is None:
        raise NotExercised("this user has no service token; a build makes one")
    return token


@then("the service token opens the administration")
def token_opens(public: PublicHost, service_token: ServiceToken) -> None:
    """Without a cookie."""
    answer = public.get("/wp-login.php", service_token.headers)
    assert is_sites_login(answer), f"expected the site's login, found {answer.status}: {gist(answer.text)}"


@then("with another secret it does not")
def wrong_secret(public: PublicHost, service_token: ServiceToken) -> None:
    """The right id with a secret of the same length."""
    wrong = {**service_token.headers, "CF-Access-Client-Secret": "0" * len(service_token.client_secret)}
    answer = public.get("/wp-login.php", wrong)
    refused = answer.status in PERMISSION_DENIED or leads_to_login(
        answer.status, answer.header("location"), public.name
    )
    assert refused, f"expected a wrong secret to be refused, found {answer.status}: {gist(answer.text)}"


@given("a virtual address that is open to everybody inside")
def open_address(environment: Environment) -> None:
    """Unless the environment closes it."""
    if environment.wordpress.vip_clients:
        raise NotExercised("wordpress.vip_clients closes the virtual address")


@given("a virtual address that is closed to all but declared clients")
def closed_address(environment: Environment) -> None:
    """Where the environment closes it."""
    if not environment.wordpress.vip_clients:
        raise NotExercised("wordpress.vip_clients is empty: the virtual address is open to everybody inside")


@then("the connector's machine reaches it and a machine that is no client does not")
def closed_inside(target: Session, connector_machine: Machine) -> None:
    """Any other machine of the site's network that is neither a client nor a node of the cluster."""
    environment = target.environment
    network = next(name for name, held in environment.networks.items() if environment.wordpress.vip in held.cidr)
    strangers = [
        machine
        for machine in environment.machines
        if machine not in environment.cluster_machines
        and network in machine.addresses
        and not any(machine.addresses[network] in clients for clients in environment.wordpress.vip_clients)
    ]
    if not strangers:
        raise NotExercised("every machine of the site's network is a client of the virtual address")
    ask = f"timeout 10 bash -c ': </dev/tcp/{environment.wordpress.vip}/80' && echo answered || echo silence"
    heard = {m.name: target.shell.run(m, ask).stdout.strip() for m in (connector_machine, *strangers)}
    wanted = {m.name: "answered" if m == connector_machine else "silence" for m in (connector_machine, *strangers)}
    none_of(
        {name: unless(heard[name] == told, f"expected {told}, found {heard[name]}") for name, told in wanted.items()}
    )


@then("it shows the site's own login to whoever is inside")
def open_inside(environment: Environment) -> None:
    """As it is: Access stands before the public host, and nothing before the virtual address."""
    reply = WordPress(f"http://{environment.wordpress.vip}").request("GET", "/wp-login.php")
    answer = Answer(reply.status_code, {}, reply.content)
    assert is_sites_login(answer), f"expected the site's login, found {answer.status}: {gist(answer.text)}"


@then("the service and the connector are Cloudflare's own")
def genuine(target: Session, connector_machine: Machine) -> None:
    """What is emulated proves the configuration, and nothing of Cloudflare."""
    edge = target.environment.edge
    version = target.shell.check(connector_machine, f"{UNIT} --version").strip()
    emulated = [f"the service is the one at {edge.api_url}"] if edge.api_url else []
    emulated += [] if re.match(r"cloudflared version \d", version) else [f"the connector is “{version}”"]
    if emulated:
        raise NotExercised(f"{' and '.join(emulated)}, not Cloudflare's own")

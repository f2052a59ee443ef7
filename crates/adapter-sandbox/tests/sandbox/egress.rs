//! What instances with an egress network reach, and what of the host they can use up.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream, UdpSocket},
    path::Path,
    process::Command,
};

use adapter::Adapter;
use adapter_sandbox::Config;
use model::{LaunchSpec, Network};

use crate::{
    Test,
    internet::Internet,
    lab::{Directory, Lab, Outcome, id, until},
    network::{greet, listen, probe},
};

pub(crate) const OF_WORKERS: &[Test] = &[
    ("egress_reaches_the_internet_only", |lab| Box::pin(egress_reaches_the_internet_only(lab))),
    ("an_allowed_range_is_opened_and_nothing_else", |lab| {
        Box::pin(an_allowed_range_is_opened_and_nothing_else(lab))
    }),
];

pub(crate) const TESTS: &[Test] = &[
    ("names_are_looked_up_where_the_host_does", |lab| {
        Box::pin(names_are_looked_up_where_the_host_does(lab))
    }),
    ("a_flood_of_flows_is_bounded", |lab| Box::pin(a_flood_of_flows_is_bounded(lab))),
    ("refused_packets_are_not_tracked", |lab| Box::pin(refused_packets_are_not_tracked(lab))),
    ("flows_do_not_outlive_the_address_of_their_instance", |lab| {
        Box::pin(flows_do_not_outlive_the_address_of_their_instance(lab))
    }),
    ("the_hosts_addresses_are_followed", |lab| Box::pin(the_hosts_addresses_are_followed(lab))),
    ("the_own_port_is_not_tracked_on_loopback", |lab| {
        Box::pin(the_own_port_is_not_tracked_on_loopback(lab))
    }),
];

/// Where the kernel shows the connections that it tracks.
const FLOWS: &str = "/proc/net/nf_conntrack";

/// The beginning of programs: sends datagrams, and waits for answers.
const DATAGRAMS: &str = "
import socket, sys, time
sys.stdout.reconfigure(line_buffering=True)
def datagrams(port=0):
    it = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    it.bind(('0.0.0.0', port))
    it.settimeout(0.1)
    return it
def own():
    it = datagrams()
    it.connect(('192.52.193.1', 9))
    return it.getsockname()[0]
";

/// An Internet, and a lab with these settings that has egress networks.
async fn with(lab: &Lab, change: impl FnOnce(&mut Config)) -> Result<(Internet, Lab), Outcome> {
    if let Some(why) = lab.adapter.no_egress() {
        return Err(Outcome::Skipped(format!("no egress network here: {why}")));
    }
    let internet = Internet::make()?;
    let other = lab.another(change).await.expect("another adapter");
    Ok((internet, other))
}

fn program(lab: &Lab, name: &str, text: &str) -> Result<LaunchSpec, Outcome> {
    let mut spec = lab.python(name, &format!("{DATAGRAMS}{text}"))?;
    spec.network = Network::Egress;
    Ok(spec)
}

/// Flows that begin at this address.
fn flows_of(address: &str) -> usize {
    let flows = fs::read_to_string(FLOWS).expect("readable");
    let begins_there = |line: &&str| {
        line.split_whitespace().find_map(|word| word.strip_prefix("src=")) == Some(address)
    };
    flows.lines().filter(begins_there).count()
}

async fn egress_reaches_the_internet_only(lab: Lab) -> Outcome {
    reaches(lab, &[]).await.unwrap_or_else(|skipped| skipped)
}

async fn an_allowed_range_is_opened_and_nothing_else(lab: Lab) -> Outcome {
    // The host's and instances' own addresses are in it, too.
    reaches(lab, &["10.0.0.0/8"]).await.unwrap_or_else(|skipped| skipped)
}

async fn reaches(outer: Lab, allowed: &[&str]) -> Result<Outcome, Outcome> {
    let allow = |config: &mut Config| {
        let ranges = allowed.iter().map(|range| range.parse().expect("a range"));
        config.allowed_networks = ranges.collect();
    };
    let (_internet, lab) = with(&outer, allow).await?;
    let own = greet(listen("0.0.0.0"), "host").port();

    // Another instance, with a listener that must not be reached.
    let neighbour = "
server = socket.create_server(('0.0.0.0', 8080))
print(own())
while True:
    server.accept()[0].sendall(b'neighbour')
";
    let other = program(&lab, "neighbour", neighbour)?;
    let mut output = lab.launch(&other).await;
    let neighbour: Ipv4Addr = output.line().await.parse().expect("an address");
    let gateway = Ipv4Addr::from_bits(neighbour.to_bits() - 1).to_string();

    let port = Internet::GREETER;
    let (public, private) = (Internet::PUBLIC, Internet::PRIVATE);
    let mut open = vec![(format!("{public}:{port}"), Internet::host_beside(public))];
    let mut refused = vec![
        format!("127.0.0.1:{own}"),
        // The host, as the Internet and as the private network see it.
        format!("{}:{own}", Internet::host_beside(public)),
        format!("{}:{own}", Internet::host_beside(private)),
        format!("{gateway}:{own}"),
        format!("{neighbour}:{port}"),
        "169.254.169.254:80".into(),
        format!("255.255.255.255:{port}"),
        format!("[::1]:{own}"),
    ];
    refused.extend(Internet::SPECIAL.map(|address| format!("{address}:{port}")));
    let target = format!("{private}:{port}");
    if allowed.is_empty() {
        refused.push(target);
    } else {
        open.push((target, Internet::host_beside(private)));
    }
    let targets: Vec<String> =
        open.iter().map(|(target, _)| target).chain(&refused).cloned().collect();
    let (said, _) = lab.run(&probe(&lab, "egress", Network::Egress, &targets)?).await;
    for (target, host) in &open {
        assert!(said.contains(&format!("{target} got greetings to {host}\n")), "NAT: {said}");
    }
    for target in &refused {
        assert!(said.contains(&format!("{target} failed")), "{target}: {said}");
    }
    // The host itself reaches what is refused, so it was not just absent.
    for address in [&[private], &Internet::SPECIAL[..]].concat() {
        let from_host = TcpStream::connect((address, port));
        assert!(from_host.is_ok(), "{address}: {from_host:?}");
    }
    lab.stop(&other.id).await;
    lab.adapter.shutdown().await;
    Ok(Outcome::Passed)
}

async fn names_are_looked_up_where_the_host_does(lab: Lab) -> Outcome {
    looks_up(lab).await.unwrap_or_else(|skipped| skipped)
}

async fn looks_up(outer: Lab) -> Result<Outcome, Outcome> {
    let unshare = Path::new("/usr/bin/unshare");
    if !unshare.exists() {
        return Err(Outcome::Skipped("no `unshare` in /usr/bin".into()));
    }
    // One on the private network, and one on the host itself.
    let (far, near) = (Internet::PRIVATE, Internet::host_beside(Internet::PRIVATE));
    let directory = Directory::new();
    let file = directory.path().join("resolv.conf");
    fs::write(&file, format!("nameserver {far}\nnameserver {near}\n")).expect("written");
    let launcher = |config: &mut Config| {
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$1\" __launcher";
        let own = std::env::current_exe().expect("a path");
        config.launcher = vec![unshare.into(), "--mount".into(), "/bin/sh".into()];
        config.launcher.extend(["-c".into(), script.into(), file.clone().into(), own.into()]);
    };
    let (_internet, lab) = with(&outer, launcher).await?;
    let on_host = UdpSocket::bind((near.as_str(), 53)).expect("a free port");
    std::thread::spawn(move || {
        let mut question = [0; 100];
        while let Ok((_, peer)) = on_host.recv_from(&mut question) {
            let _ = on_host.send_to(b"an answer", peer);
        }
    });
    let ask = "
servers = [line.split()[1] for line in open('/etc/resolv.conf')]
for server in servers:
    for port in 53, 8081:
        questions = datagrams()
        questions.settimeout(1)
        questions.sendto(b'?', (server, port))
        try:
            print(server, port, questions.recv(100).decode())
        except OSError:
            print(server, port, 'failed')
";
    let (said, _) = lab.run(&program(&lab, "names", ask)?).await;
    let expected =
        format!("{far} 53 an answer\n{far} 8081 failed\n{near} 53 an answer\n{near} 8081 failed\n");
    assert_eq!(said, expected);
    lab.adapter.shutdown().await;
    Ok(Outcome::Passed)
}

async fn a_flood_of_flows_is_bounded(lab: Lab) -> Outcome {
    floods(lab).await.unwrap_or_else(|skipped| skipped)
}

async fn floods(outer: Lab) -> Result<Outcome, Outcome> {
    const MOST: u32 = 64;
    if !Path::new(FLOWS).exists() {
        return Err(Outcome::Skipped(format!("no {FLOWS}: how many there are cannot be seen")));
    }
    let (_internet, lab) = with(&outer, |config| config.flows_per_instance = Some(MOST)).await?;
    // One socket, and as many destinations as there are ports.
    let flood = "
print(own())
it = datagrams()
for turn in range(1000):
    for port in range(1000, 2000):
        it.sendto(b'x', ('192.52.193.1', 1000 + turn + port))
    if turn % 10 == 0:
        print(turn)
    time.sleep(0.02)
";
    let flooding = program(&lab, "flooding", flood)?;
    let mut output = lab.launch(&flooding).await;
    let address = output.line().await;
    let most = usize::try_from(MOST).expect("a small number");
    // It may begin no more than a few in a second, and what is sent during ten lines would be more
    // than the rest. The kernel counts one that has just ended for a moment.
    until("it has most of what it may have", || flows_of(&address) >= most * 3 / 4).await;
    for _ in 0..10 {
        output.line().await;
        assert!(flows_of(&address) <= most, "{}", flows_of(&address));
    }
    // Others are not affected.
    let public = format!("{}:{}", Internet::PUBLIC, Internet::GREETER);
    let (said, _) =
        lab.run(&probe(&lab, "other", Network::Egress, std::slice::from_ref(&public))?).await;
    assert!(said.contains(&format!("{public} got greetings")), "{said}");
    TcpStream::connect(public).expect("the host connects");
    lab.stop(&flooding.id).await;
    lab.adapter.shutdown().await;
    Ok(Outcome::Passed)
}

async fn refused_packets_are_not_tracked(lab: Lab) -> Outcome {
    is_refused(lab).await.unwrap_or_else(|skipped| skipped)
}

async fn is_refused(outer: Lab) -> Result<Outcome, Outcome> {
    if !Path::new(FLOWS).exists() {
        return Err(Outcome::Skipped(format!("no {FLOWS}: what is tracked cannot be seen")));
    }
    let (_internet, lab) = with(&outer, |_| {}).await?;
    let send = "
it = datagrams()
gateway = own().rsplit('.', 1)
gateway = gateway[0] + '.' + str(int(gateway[1]) - 1)
for last in range(1, 250):
    for place in '10.77.77.', '198.18.77.', '203.0.113.':
        it.sendto(b'x', (place + str(last), 9))
    it.sendto(b'x', (gateway, last))
it.sendto(b'x', ('192.52.193.1', 8081))
print(own())
time.sleep(1000)
";
    let sending = program(&lab, "sending", send)?;
    let mut output = lab.launch(&sending).await;
    let address = output.line().await;
    assert_eq!(flows_of(&address), 1, "what is allowed");

    // Only root could send from another address. Its network's surroundings refuse that, too.
    let instances = lab.adapter.recover().await.expect("recover");
    let pid = instances[0].pid.expect("it runs").to_string();
    let other = Ipv4Addr::from_bits(address.parse::<Ipv4Addr>().expect("an address").to_bits() + 2);
    let pretend = format!(
        "
import socket
for own in '{address}', '{other}':
    it = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    it.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
    it.bind((own, 4444))
    it.sendto(b'x', ('192.52.193.1', 9))
"
    );
    let pretended = Command::new("nsenter")
        .args(["--net", "--target", &pid, "/usr/bin/python3", "-c", &pretend])
        .status();
    if pretended.is_ok_and(|status| status.success()) {
        assert_eq!(flows_of(&address), 2, "as itself");
        assert_eq!(flows_of(&other.to_string()), 0, "as another");
    }
    lab.stop(&sending.id).await;
    lab.adapter.shutdown().await;
    Ok(Outcome::Passed)
}

async fn flows_do_not_outlive_the_address_of_their_instance(lab: Lab) -> Outcome {
    uses_again(lab).await.unwrap_or_else(|skipped| skipped)
}

async fn uses_again(outer: Lab) -> Result<Outcome, Outcome> {
    // Eight addresses.
    let few = |config: &mut Config| config.network_range = (Ipv4Addr::new(10, 198, 7, 0), 24);
    let (_internet, lab) = with(&outer, few).await?;
    let subscribe = "
it = datagrams(5555)
for attempt in range(100):
    it.sendto(b'tell me', ('192.52.193.1', 8081))
    try:
        it.recv(100)
    except OSError:
        continue
    print(own())
    break
";
    let (said, _) = lab.run(&program(&lab, "former", subscribe)?).await;
    let former = said.trim();
    assert!(former.starts_with("10.198.7."), "{said}");
    let overhear = "
it = datagrams(5555)
it.settimeout(0.5)
print(own())
try:
    print('heard', it.recv(100).decode())
except OSError:
    print('heard nothing')
";
    let mut addresses = Vec::new();
    for number in 0..24 {
        let (said, _) = lab.run(&program(&lab, &format!("next-{number}"), overhear)?).await;
        let (address, heard) = said.split_once('\n').expect("two lines");
        assert_eq!(heard, "heard nothing\n", "by {address}");
        addresses.push(address.to_owned());
        if address == former {
            lab.adapter.shutdown().await;
            return Ok(Outcome::Passed);
        }
    }
    panic!("{former} is never used again: {addresses:?}");
}

async fn the_hosts_addresses_are_followed(lab: Lab) -> Outcome {
    follows(lab).await.unwrap_or_else(|skipped| skipped)
}

async fn follows(outer: Lab) -> Result<Outcome, Outcome> {
    let (internet, lab) = with(&outer, |_| {}).await?;
    // One lasting exchange of datagrams, and a new connection each time.
    let talk = "
it = datagrams()
def attempt(what):
    try:
        return what()
    except OSError:
        return 'nothing'
def connect():
    with socket.create_connection(('192.52.193.1', 8080), timeout=0.5) as connection:
        return connection.recv(100).decode()
for turn in range(1000):
    it.sendto(b'tell me', ('192.52.193.1', 8081))
    print(attempt(lambda: it.recv(100).decode()), 'and', attempt(connect))
";
    let talking = program(&lab, "talking", talk)?;
    let mut output = lab.launch(&talking).await;
    for host in ["192.52.193.254", "192.52.193.253", "192.52.193.252"] {
        let expected = format!("you are {host} and greetings to {host}");
        let mut said = Vec::new();
        while said.last() != Some(&expected) {
            said.push(output.line().await);
            assert!(said.len() < 200, "{said:?}");
        }
        let next = host.replace("253", "252").replace("254", "253");
        internet.renumber(host, &next);
    }
    lab.stop(&talking.id).await;
    lab.adapter.shutdown().await;
    Ok(Outcome::Passed)
}

async fn the_own_port_is_not_tracked_on_loopback(lab: Lab) -> Outcome {
    exempts(lab).await.unwrap_or_else(|skipped| skipped)
}

async fn exempts(outer: Lab) -> Result<Outcome, Outcome> {
    if !Path::new(FLOWS).exists() {
        return Err(Outcome::Skipped(format!("no {FLOWS}: what is tracked cannot be seen")));
    }
    let own = greet(listen("127.0.0.1"), "own").port();
    let other = greet(listen("127.0.0.1"), "other").port();
    let (_internet, lab) = with(&outer, |config| config.untracked_ports = vec![own]).await?;
    // Any instance: what holds for the rules holds without one, too.
    let spec = lab.script(&id("any"), "true");
    lab.run(&spec).await;
    let is_tracked = |port: u16| {
        let _connection = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let flows = fs::read_to_string(FLOWS).expect("readable");
        flows.lines().any(|flow| flow.contains(&format!("dport={port} ")))
    };
    assert!(!is_tracked(own));
    if is_tracked(other) {
        lab.adapter.shutdown().await;
        return Ok(Outcome::Passed);
    }
    Err(Outcome::Skipped("nothing is tracked on this host's loopback".into()))
}

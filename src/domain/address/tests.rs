use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use proptest::prelude::*;

use super::special::{SPECIAL_V4, SPECIAL_V6, special_v4};
use super::*;

#[track_caller]
fn check(allowed: &str, address: &str, expected: Option<&str>) {
    let networks = AllowedNetworks::parse(allowed).expect("networks");
    let range = networks.check(ip(address)).err().map(|error| match error.why {
        ForbiddenBy::Special(range) => range.name,
        ForbiddenBy::Denied(..) => panic!("{error}"),
    });
    assert_eq!(range, expected, "{address}");
}

#[track_caller]
fn check_denied(allowed: &str, denied: &str, address: &str, expected: Option<&str>) {
    let networks = AllowedNetworks::parse(allowed).expect("networks");
    let networks = networks.denying(denied).expect("networks");
    let said = networks.check(ip(address)).err().map(|error| error.to_string());
    assert_eq!(said.as_deref(), expected, "{address}");
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

#[test]
fn only_the_public_internet_is_allowed_by_default() {
    for public in [
        "1.1.1.1",
        "93.184.216.34",
        "172.32.0.1",
        "100.128.0.1",
        "192.0.1.1",
        "198.20.0.0",
        "2606:4700::1111",
        "2a00:1450:4001:800::200e",
        "64:ff9b::101:101",
        "2002:101:101::",
        "::ffff:1.1.1.1",
        "2606:4700::5efe:101:101",
    ] {
        check("", public, None);
    }
    for (address, range) in [
        ("0.0.0.0", "this network"),
        ("10.1.2.3", "private"),
        ("100.64.0.1", "shared address space"),
        ("100.100.100.200", "shared address space"),
        ("127.0.0.1", "loopback"),
        ("168.63.129.16", "Azure's own"),
        ("169.254.169.254", "link-local: cloud metadata and credentials"),
        ("172.31.255.255", "private"),
        ("192.0.0.192", "protocol assignments"),
        ("192.168.0.1", "private"),
        ("192.175.48.1", "AS112"),
        ("198.19.255.255", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::127.0.0.1", "IPv4-compatible"),
        ("::ffff:0:127.0.0.1", "IPv4-translated"),
        ("fe80::1", "link-local"),
        ("fd00:ec2::254", "unique local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("64:ff9b:1::1", "local NAT64"),
        ("4000::1", "outside 2000::/3"),
        ("1::1", "outside 2000::/3"),
        ("2001:0:4136:e378::1", "Teredo"),
        ("2001:20::1", "protocol assignments"),
        ("2001:db8::1", "documentation"),
        ("3fff:fff::1", "documentation"),
        ("::ffff:10.0.0.1", "private"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:a9fe:a9fe::1", "link-local: cloud metadata and credentials"),
        ("2606:4700::5efe:a00:1", "private"),
        ("2606:4700::200:5efe:7f00:1", "loopback"),
    ] {
        check("", address, Some(range));
    }
}

/// The rows of IANA's registries (as of 2025). Every range that is special there is special here,
/// whether it is globally reachable or not. 2002::/16 and the two prefixes that contain an IPv4 address
/// are missing, because they are judged by that address.
#[test]
fn every_row_of_ianas_registries_is_refused_from_its_first_address_to_its_last() {
    for row in [
        "0.0.0.0/8",
        "0.0.0.0/32",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.0.0/29",
        "192.0.0.8/32",
        "192.0.0.9/32",
        "192.0.0.10/32",
        "192.0.0.170/32",
        "192.0.0.171/32",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.88.99.2/32",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
        "255.255.255.255/32",
        "224.0.0.0/4",
        "::1/128",
        "::/128",
        "64:ff9b:1::/48",
        "100::/64",
        "100:0:0:1::/64",
        "2001::/23",
        "2001::/32",
        "2001:1::1/128",
        "2001:1::2/128",
        "2001:1::3/128",
        "2001:2::/48",
        "2001:3::/32",
        "2001:4:112::/48",
        "2001:10::/28",
        "2001:20::/28",
        "2001:30::/28",
        "2001:db8::/32",
        "2620:4f:8000::/48",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    ] {
        let network: IpNet = row.parse().expect(row);
        for address in [network.network(), network.broadcast()] {
            let found = special_range(address).unwrap_or_else(|| panic!("{row}: {address}"));
            let named = found.network.expect(row);
            assert!(named.contains(&address), "{row}: {address} is not in {named}");
        }
    }
}

#[test]
fn a_refusal_names_the_range_and_says_how_to_allow_the_address() {
    let networks = AllowedNetworks::default();
    let said = |address: &str| networks.check(ip(address)).expect_err(address).to_string();
    assert_eq!(
        said("::ffff:10.1.2.3"),
        "the address 10.1.2.3 is not on the public internet (private, 10.0.0.0/8): allow it by \
         ALLOW_NETWORKS=10.1.2.3 or a network around it"
    );
    assert!(said("2002:7f00:1::").contains("(loopback, 127.0.0.0/8)"));
    assert!(said("4000::1").contains("(outside 2000::/3)"));
}

#[test]
fn the_operator_can_allow_more_networks() {
    check("127.0.0.0/8, ::1", "127.0.0.1", None);
    check("127.0.0.0/8, ::1", "::1", None);
    check("10.0.0.0/8", "::ffff:10.0.0.1", None);
    check("::ffff:10.0.0.0/104", "10.0.0.1", None);
    check("::ffff:10.0.0.1", "10.0.0.1", None);
    check("10.0.0.0/8", "192.168.0.1", Some("private"));
    check("10.0.0.0/8", "64:ff9b::a00:1", Some("private"));
    check("64:ff9b::a00:1", "64:ff9b::a00:1", None);
    check("::/0", "::ffff:127.0.0.1", Some("loopback"));
    for bad in ["10.0.0.0/33", "localhost", "10.0.0.0/8;::1"] {
        assert!(AllowedNetworks::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_denied_network_is_refused_even_if_it_is_public_or_allowed() {
    for (allowed, denied, address, said) in [
        ("", "1.1.1.0/24", "1.1.1.1", "the address 1.1.1.1 is in DENY_NETWORKS (1.1.1.0/24)"),
        ("", "1.1.1.1", "::ffff:1.1.1.1", "the address 1.1.1.1 is in DENY_NETWORKS (1.1.1.1/32)"),
        (
            "",
            "::ffff:1.1.1.0/120",
            "1.1.1.1",
            "the address 1.1.1.1 is in DENY_NETWORKS (1.1.1.0/24)",
        ),
        (
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3",
            "the address 10.1.2.3 is in DENY_NETWORKS (10.1.0.0/16)",
        ),
        (
            "10.1.2.3",
            "10.0.0.0/8",
            "10.1.2.3",
            "the address 10.1.2.3 is in DENY_NETWORKS (10.0.0.0/8)",
        ),
        ("", "10.0.0.0/8", "10.1.2.3", "the address 10.1.2.3 is in DENY_NETWORKS (10.0.0.0/8)"),
        (
            "64:ff9b::/96",
            "1.1.1.0/24",
            "64:ff9b::101:101",
            "the address 64:ff9b::101:101 leads to 1.1.1.1, which is in DENY_NETWORKS (1.1.1.0/24)",
        ),
        (
            "",
            "1.1.1.1",
            "2002:101:101::1",
            "the address 2002:101:101::1 leads to 1.1.1.1, which is in DENY_NETWORKS (1.1.1.1/32)",
        ),
        (
            "64:ff9b:1::/48",
            "10.1.2.3",
            "64:ff9b:1:a01:2:300::",
            "the address 64:ff9b:1:a01:2:300:: leads to 10.1.2.3, which is in DENY_NETWORKS (10.1.2.3/32)",
        ),
        // The operator's own NAT64 prefix is denied as a whole.
        (
            "2a00:64::/96",
            "2a00:64::/96",
            "2a00:64::a01:203",
            "the address 2a00:64::a01:203 is in DENY_NETWORKS (2a00:64::/96)",
        ),
    ] {
        check_denied(allowed, denied, address, Some(said));
    }
    check_denied("10.0.0.0/8", "10.1.0.0/16", "10.2.0.1", None);
    check_denied("", "1.1.1.0/24", "1.1.2.1", None);
    check_denied("", "::/0", "1.1.1.1", None);
    for bad in ["10.0.0.0/33", "localhost", "10.0.0.0/8;::1"] {
        assert!(AllowedNetworks::default().denying(bad).is_err(), "{bad}");
    }
}

/// An IPv4 address in every form in which an IPv6 address can contain it.
fn outer(inner: Ipv4Addr) -> [IpAddr; 8] {
    let [a, b, c, d] = inner.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    [
        inner.to_ipv6_mapped(),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x2606, 0x4700, 0, 1, 0, 0x5efe, high, low),
        Ipv6Addr::new(0x2606, 0x4700, 0, 1, 0x200, 0x5efe, high, low),
        // These are refused whatever they contain.
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
        Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
        Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !high, !low),
    ]
    .map(IpAddr::from)
}

/// An IPv4 address after a prefix of 48 bits, as RFC 6052 embeds it: around bits 64 to 71.
fn outer_by_rfc_6052(inner: Ipv4Addr) -> [IpAddr; 1] {
    let [a, b, c, d] = inner.octets();
    let (high, c, d) = (u16::from_be_bytes([a, b]), u16::from(c), u16::from(d) << 8);
    [Ipv6Addr::new(0x64, 0xff9b, 1, high, c, d, 0, 0).into()]
}

/// A random address in a network.
fn somewhere_in(network: IpNet, chance: u128) -> IpAddr {
    match network {
        IpNet::V4(v4) => {
            let hosts = v4.hostmask().to_bits() & chance as u32;
            Ipv4Addr::from_bits(v4.network().to_bits() | hosts).into()
        }
        IpNet::V6(v6) => {
            let hosts = v6.hostmask().to_bits() & chance;
            Ipv6Addr::from_bits(v6.network().to_bits() | hosts).into()
        }
    }
}

proptest! {
    #[test]
    fn every_address_of_a_special_range_is_refused_in_every_form(chance: u128) {
        let networks = AllowedNetworks::default();
        for (network, name) in SPECIAL_V4 {
            let IpAddr::V4(inner) = somewhere_in(network.into(), chance) else { unreachable!() };
            prop_assert!(networks.check(inner.into()).is_err(), "{}: {}", name, inner);
            for address in outer(inner) {
                prop_assert!(networks.check(address).is_err(), "{}: {}", name, address);
            }
        }
        for (network, name) in SPECIAL_V6 {
            let address = somewhere_in(network.into(), chance);
            prop_assert!(networks.check(address).is_err(), "{}: {}", name, address);
        }
    }

    #[test]
    fn every_address_of_a_denied_network_is_refused_in_every_form(
        bits: u32, chance: u128, prefix in 0_u8..=32,
    ) {
        let denied = Ipv4Net::new(Ipv4Addr::from(bits), prefix).expect("a prefix");
        let networks = AllowedNetworks::parse("0.0.0.0/0,::/0").expect("all of them");
        let networks = networks.denying(&denied.to_string()).expect("a network");
        let IpAddr::V4(inner) = somewhere_in(denied.into(), chance) else { unreachable!() };
        let wrapped = outer(inner).into_iter().chain(outer_by_rfc_6052(inner));
        for address in wrapped.chain([inner.into()]) {
            let refused = networks.check(address);
            let is_denied =
                matches!(&refused, Err(Forbidden { why: ForbiddenBy::Denied(network, _), .. }) if *network == IpNet::V4(denied));
            // A mapped address is checked only as the IPv4 address.
            prop_assert!(is_denied, "{}: {:?}", address, refused);
        }
        // Other addresses aren't denied. (Some forms contain a second address, so only one is checked.)
        let beside = Ipv4Addr::from(!bits);
        if !denied.contains(&beside) {
            prop_assert!(networks.check(beside.into()).is_ok());
            prop_assert!(networks.check(outer(beside)[0]).is_ok());
        }
    }

    #[test]
    fn an_embedded_address_is_judged_like_the_ipv4_address(bits: u32) {
        let inner = Ipv4Addr::from(bits);
        let (judged, refused) = (&outer(inner)[..5], &outer(inner)[5..]);
        for address in judged {
            prop_assert_eq!(special_range(address.to_canonical()), special_v4(inner));
        }
        for address in refused {
            prop_assert!(special_range(*address).is_some());
        }
    }

    #[test]
    fn exactly_the_networks_that_the_operator_names_are_allowed_or_denied(
        bits: u128, near: u128, prefix in 0_u8..=128, keep in 0_u8..=128,
    ) {
        let network = Ipv6Net::new(Ipv6Addr::from_bits(bits), prefix).expect("a prefix");
        // The first `keep` bits are those of the network, so the address is often just inside or outside.
        let mask = u128::MAX.checked_shr(keep.into()).unwrap_or(0);
        let v6 = Ipv6Addr::from_bits(bits & !mask | near & mask);
        let v4_network = Ipv4Net::new(Ipv4Addr::from_bits(bits as u32), prefix / 4).expect("a prefix");
        let mask = mask as u32;
        let v4 = Ipv4Addr::from_bits(bits as u32 & !mask | near as u32 & mask);
        let cases: [(IpNet, IpAddr); 3] = [
            (network.into(), v6.into()),
            (v4_network.into(), v4.into()),
            (v4_network.into(), v6.into()),
        ];
        for (network, address) in cases {
            let address = address.to_canonical();
            let allowed = AllowedNetworks::parse(&network.to_string()).expect("a network");
            let expected =
                special_range(address).is_none() || canonical(network).contains(&address);
            prop_assert_eq!(allowed.check(address).is_ok(), expected, "{} {}", network, address);
            let denied = AllowedNetworks::parse("0.0.0.0/0,::/0").expect("all of them");
            let denied = denied.denying(&network.to_string()).expect("a network");
            if canonical(network).contains(&address) {
                prop_assert!(denied.check(address).is_err(), "{} {}", network, address);
            }
        }
    }
}

//! Which addresses a webhook may reach: the public internet, and what the operator adds.
//!
//! A webhook's URL is a stranger's input. Without this guard it could name the cloud's metadata
//! service (169.254.169.254), the database, or this process's own ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::shown::quoted;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(segments: [u16; 8], prefix: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

/// What is not the public internet in IPv4: IANA's special-purpose address registry (RFC 6890),
/// multicast, and an address that is public by its number only. The few blocks of the registry that
/// are globally reachable serve routers, not webhooks, and stay refused with the rest.
///
/// Of ranges that lie in each other the smaller one comes first: it says more.
const SPECIAL_V4: [(Ipv4Net, &str); 20] = [
    (v4(0, 0, 0, 0, 8), "this network"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "shared address space"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    // In every virtual machine there this is the machine's host, with what it knows of its guest.
    (v4(168, 63, 129, 16, 32), "Azure's own"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "protocol assignments"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 31, 196, 0, 24), "AS112"),
    (v4(192, 52, 193, 0, 24), "AMT"),
    (v4(192, 88, 99, 0, 24), "6to4 relays"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(192, 175, 48, 0, 24), "AS112"),
    (v4(198, 18, 0, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// The same for IPv6. Of what lies outside 2000::/3, the only block that is given out, these are
/// the ranges with a name; the rest is refused without one.
const SPECIAL_V6: [(Ipv6Net, &str); 17] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "IPv4-compatible"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4-translated"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local NAT64"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard-only"),
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), "dummy prefix"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), "AS112"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

/// The networks beyond the public internet that webhooks may reach (ALLOW_NETWORKS).
#[derive(Clone, Debug, Default)]
pub struct AllowedNetworks(Vec<IpNet>);

/// An address that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub range: Range,
}

/// A range of addresses that are not the public internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// What it is for, or that nobody has it.
    pub name: &'static str,
    /// Its addresses. The address itself is none of them where it only leads to one.
    pub network: Option<IpNet>,
}

impl std::error::Error for Forbidden {}

impl fmt::Display for Forbidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, range } = self;
        write!(
            formatter,
            "the address {address} is not on the public internet ({range}): allow it by \
             ALLOW_NETWORKS={address} or a network around it"
        )
    }
}

impl fmt::Display for Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)?;
        self.network.map_or(Ok(()), |network| write!(formatter, ", {network}"))
    }
}

impl AllowedNetworks {
    /// Networks in CIDR notation or single addresses, separated by commas.
    ///
    /// # Errors
    /// One line that names what can't be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let networks = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        networks
            .map(|part| {
                // What reads networks takes 010 for ten; to others it is eight.
                let address = part.split('/').next().and_then(|it| it.parse::<IpAddr>().ok());
                let network = match part.contains('/') {
                    true => address.and_then(|_| part.parse().ok()),
                    false => address.map(IpNet::from),
                };
                network
                    .map(canonical)
                    .ok_or_else(|| format!("{} is not a network such as 10.0.0.0/8", quoted(part)))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Says whether a webhook may reach an address.
    ///
    /// # Errors
    /// [`Forbidden`], which names the range.
    pub fn check(&self, address: IpAddr) -> Result<(), Forbidden> {
        // An IPv4-mapped address is the IPv4 address to the kernel, so also here: `::/0` allows
        // none.
        let address = address.to_canonical();
        let Some(range) = special_range(address) else { return Ok(()) };
        let allowed = self.0.iter().any(|network| network.contains(&address));
        if allowed { Ok(()) } else { Err(Forbidden { address, range }) }
    }
}

/// A network of IPv4-mapped addresses is the IPv4 network.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped();
    let prefix = v6.prefix_len().checked_sub(96);
    let v4 = mapped.zip(prefix).and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    v4.map_or(network, IpNet::V4)
}

/// The special-purpose range that an address lies in or leads to; `None` on the public internet.
fn special_range(address: IpAddr) -> Option<Range> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => {
            let named = SPECIAL_V6.iter().find(|(network, _)| network.contains(&address));
            if let Some((network, name)) = named {
                return Some(Range { name, network: Some((*network).into()) });
            }
            match embedded_v4(address) {
                Some(inner) => special_v4(inner),
                None if GLOBAL_V6.contains(&address) => None,
                None => Some(Range { name: "outside 2000::/3", network: None }),
            }
        }
    }
}

fn special_v4(address: Ipv4Addr) -> Option<Range> {
    let (network, name) = SPECIAL_V4.iter().find(|(network, _)| network.contains(&address))?;
    Some(Range { name, network: Some((*network).into()) })
}

/// The IPv4 address that a packet to this one ends at: IPv4-mapped (RFC 4291), NAT64's well-known
/// prefix (RFC 6052), 6to4 (RFC 3056), and ISATAP (RFC 5214), which any network may use within.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let at = |start: usize| {
        Ipv4Addr::new(octets[start], octets[start + 1], octets[start + 2], octets[start + 3])
    };
    let is_isatap = matches!(address.segments(), [.., 0 | 0x200, 0x5efe, _, _]);
    if SIX_TO_FOUR.contains(&address) {
        Some(at(2))
    } else if NAT64.contains(&address) || is_isatap && GLOBAL_V6.contains(&address) {
        Some(at(12))
    } else {
        address.to_ipv4_mapped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(allowed: &str, address: &str, expected: Option<&str>) {
        let networks = AllowedNetworks::parse(allowed).expect("networks");
        let range = networks.check(ip(address)).err().map(|e| e.range.name);
        assert_eq!(range, expected, "{address}");
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
            ("169.254.169.254", "link-local"),
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
            ("2002:a9fe:a9fe::1", "link-local"),
            ("2606:4700::5efe:a00:1", "private"),
            ("2606:4700::200:5efe:7f00:1", "loopback"),
        ] {
            check("", address, Some(range));
        }
    }

    /// IANA's registries, row by row (as of 2025): what is special there is special here, whatever
    /// it says of reachability; 2002::/16 and the two prefixes that hold an IPv4 address are judged
    /// by that.
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
    fn what_is_refused_says_which_range_and_how_to_allow_it() {
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
    fn the_operator_may_allow_more() {
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

    /// Every way in which an IPv6 address can hold an IPv4 address.
    fn outer(inner: Ipv4Addr) -> [IpAddr; 8] {
        let [a, b, c, d] = inner.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        [
            inner.to_ipv6_mapped(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2606, 0x4700, 0, 1, 0, 0x5efe, high, low),
            Ipv6Addr::new(0x2606, 0x4700, 0, 1, 0x200, 0x5efe, high, low),
            // These are refused whatever they hold.
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !high, !low),
        ]
        .map(IpAddr::from)
    }

    /// Anywhere in a network, by chance.
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
        fn every_address_of_a_special_range_is_refused_whatever_it_is_wrapped_in(chance: u128) {
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
        fn an_embedded_address_is_judged_like_itself(bits: u32) {
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
        fn what_the_operator_allows_is_exactly_that_network(
            bits: u128, near: u128, prefix in 0_u8..=128, keep in 0_u8..=128,
        ) {
            let network = Ipv6Net::new(Ipv6Addr::from_bits(bits), prefix).expect("a prefix");
            // As far as `keep` it is the network's address, so it often lies inside or just outside.
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
            }
        }
    }
}

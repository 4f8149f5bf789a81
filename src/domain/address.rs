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

const fn v6(first: [u16; 4], prefix: u8) -> Ipv6Net {
    let [a, b, c, d] = first;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), prefix)
}

/// IANA's IPv4 special-purpose address registry (RFC 6890), and multicast. The few blocks in it
/// that are globally reachable serve routers, not webhooks, and stay refused with the rest.
const SPECIAL_V4: [(Ipv4Net, &str); 17] = [
    (v4(0, 0, 0, 0, 8), "this network"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "shared address space"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "protocol assignments"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 31, 196, 0, 24), "AS112"),
    (v4(192, 52, 193, 0, 24), "AMT"),
    (v4(192, 88, 99, 0, 24), "6to4 relays"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(198, 18, 0, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// What is special inside 2000::/3, the only IPv6 block that is given out (IANA's IPv6
/// special-purpose address registry).
const SPECIAL_V6: [(Ipv6Net, &str); 4] = [
    (v6([0x2001, 0, 0, 0], 23), "protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0], 32), "documentation"),
    (v6([0x2620, 0x4f, 0x8000, 0], 48), "AS112"),
    (v6([0x3fff, 0, 0, 0], 20), "documentation"),
];

const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0], 3);
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], 96);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0], 16);

/// The networks beyond the public internet that webhooks may reach (ALLOW_NETWORKS).
#[derive(Clone, Debug, Default)]
pub struct AllowedNetworks(Vec<IpNet>);

/// An address that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The address.
    pub address: IpAddr,
    /// The special-purpose range that it lies in.
    pub range: &'static str,
}

impl std::error::Error for Forbidden {}

impl fmt::Display for Forbidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, range } = self;
        write!(
            formatter,
            "the address {address} is not on the public internet ({range}): allow it by ALLOW_NETWORKS"
        )
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
        let Some(range) = special_range(address) else { return Ok(()) };
        // An IPv4-mapped address is the IPv4 address to the kernel, so also to the operator.
        let allowed = |net: &IpNet| net.contains(&address) || net.contains(&address.to_canonical());
        if self.0.iter().any(allowed) { Ok(()) } else { Err(Forbidden { address, range }) }
    }
}

/// The special-purpose range an address lies in; `None` on the public internet.
fn special_range(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(inner) => special_v4(inner),
            None if !GLOBAL_V6.contains(&address) => Some("outside 2000::/3"),
            None => {
                SPECIAL_V6.iter().find(|(net, _)| net.contains(&address)).map(|(_, name)| *name)
            }
        },
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    SPECIAL_V4.iter().find(|(net, _)| net.contains(&address)).map(|(_, name)| *name)
}

/// The IPv4 address that a packet to this one ends at: IPv4-mapped (RFC 4291), NAT64's well-known
/// prefix (RFC 6052), 6to4 (RFC 3056).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let at = |start: usize| {
        Ipv4Addr::new(octets[start], octets[start + 1], octets[start + 2], octets[start + 3])
    };
    if NAT64.contains(&address) {
        Some(at(12))
    } else if SIX_TO_FOUR.contains(&address) {
        Some(at(2))
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
        let range = networks.check(address.parse().expect("an address")).err().map(|e| e.range);
        assert_eq!(range, expected, "{address}");
    }

    #[test]
    fn only_the_public_internet_is_allowed_by_default() {
        for public in
            ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "2002:101:101::"]
        {
            check("", public, None);
        }
        for (address, range) in [
            ("0.0.0.0", "this network"),
            ("10.1.2.3", "private"),
            ("100.64.0.1", "shared address space"),
            ("127.0.0.1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("172.31.255.255", "private"),
            ("192.168.0.1", "private"),
            ("198.19.255.255", "benchmarking"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "outside 2000::/3"),
            ("::1", "outside 2000::/3"),
            ("::127.0.0.1", "outside 2000::/3"),
            ("fe80::1", "outside 2000::/3"),
            ("fd00::1", "outside 2000::/3"),
            ("ff02::1", "outside 2000::/3"),
            ("64:ff9b:1::1", "outside 2000::/3"),
            ("2001:db8::1", "documentation"),
            ("::ffff:10.0.0.1", "private"),
            ("64:ff9b::7f00:1", "loopback"),
            ("2002:a9fe:a9fe::1", "link-local"),
        ] {
            check("", address, Some(range));
        }
    }

    #[test]
    fn the_operator_may_allow_more() {
        check("127.0.0.0/8, ::1", "127.0.0.1", None);
        check("127.0.0.0/8, ::1", "::1", None);
        check("10.0.0.0/8", "::ffff:10.0.0.1", None);
        check("10.0.0.0/8", "192.168.0.1", Some("private"));
        for bad in ["10.0.0.0/33", "localhost", "10.0.0.0/8;::1"] {
            assert!(AllowedNetworks::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_embedded_address_is_judged_like_itself(bits: u32) {
            let inner = Ipv4Addr::from(bits);
            let [a, b, c, d] = inner.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let outer = [
                inner.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ];
            for address in outer {
                prop_assert_eq!(special_range(address.into()), special_v4(inner));
            }
        }
    }
}
